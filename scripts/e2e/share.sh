# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with e2e-share.sh
# The registry, the models and the checks of e2e-share.sh. Each check has a model of its own, which
# nobody has when it begins.

MB=$((1 << 20))

# What D's programs ask of their own ollana, for which --listen on port 11435 is the only way.
local_api() { on "$1" curl -sS -N --max-time 60 "${@:3}" "http://127.0.0.1:11435$2"; }

# A certificate for the names of Ollama's registry, which only the Ollamas of this run believe and
# which lead to host B.
start_registry() {
    local host
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry.ollama.ai \
        -addext subjectAltName=DNS:registry.ollama.ai,DNS:blobs.example \
        -keyout "$work/key.pem" -out "$work/registry.crt" 2>/dev/null
    cat "$work/key.pem" "$work/registry.crt" >"$work/registry.pem"
    for host in "${servers[@]}"; do
        # `ip netns exec` shows these in place of those in /etc.
        mkdir -p "/etc/netns/$net-$host"
        echo "${place[b]%:*} registry.ollama.ai blobs.example" >"/etc/netns/$net-$host/hosts"
    done
    ollama_env=(SSL_CERT_FILE="$work/registry.crt")
    store=$work/b/models
    mkdir -p "$store/blobs"
    internet '{}'
    start registry b python3 "$here/registry.py" "$store" "$work/registry.pem" "$work/internet"
}

# internet JSON: how the registry is from now on.
internet() { echo "$1" >"$work/internet.new" && mv "$work/internet.new" "$work/internet"; }

# given [NAME]: bytes that the registry has given, of the large layers of one model.
given() {
    local digests
    digests=$(layers_of "$store" "$1")
    awk -v of="$digests" '$1 == "given" && index(of, $2) { sum += $3 } END { print sum + 0 }' "$work/registry.log"
}

# pack NAME FILE…: a model of these layers in the registry. The first are its weights.
pack() {
    local name=$1 file digest layers= kind=model config='{"model_format":"gguf","model_family":"llama"}'
    for file in "${@:2}"; do
        digest=$(sha256sum <"$file" | cut -d' ' -f1)
        cp "$file" "$store/blobs/sha256-$digest"
        layers+="${layers:+,}{\"mediaType\":\"application/vnd.ollama.image.$kind\",\"digest\":\"sha256:$digest\",\"size\":$(stat -c %s "$file")}"
        kind=license
    done
    digest=$(printf %s "$config" | sha256sum | cut -d' ' -f1)
    printf %s "$config" >"$store/blobs/sha256-$digest"
    mkdir -p "$store/manifests/$library/$name"
    printf %s '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",' \
        "\"config\":{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\"digest\":\"sha256:$digest\",\"size\":${#config}}," \
        "\"layers\":[$layers]}" >"$store/manifests/$library/$name/latest"
}
library=registry.ollama.ai/library

# noise NAME MB: a file that no other is equal to.
noise() { head -c "$(($2 * MB))" /dev/urandom >"$work/noise-$1" && echo "$work/noise-$1"; }

# fresh NAME MB…: a model in the registry, one layer for each size.
fresh() {
    local size files=()
    for size in "${@:2}"; do files+=("$(noise "${#files[@]}" "$size")"); done
    pack "$1" "${files[@]}"
    rm -f "${files[@]}"
}

# have HOST NAME: has it from now on, as if it had pulled it.
have() {
    local digest
    mkdir -p "$work/$1/models/blobs" "$work/$1/models/manifests/$library/$2"
    for digest in $(layers_of "$store" "$2"); do
        cp "$store/blobs/${digest/:/-}" "$work/$1/models/blobs/"
    done
    cp "$store/manifests/$library/$2/latest" "$work/$1/models/manifests/$library/$2/"
    sleep 1.2 # what its ollana remembers of the store may be a second old
}

# layers_of STORE NAME: the files of its blobs, sorted.
layers_of() {
    grep -o '"digest":"sha256:[0-9a-f]*"' "$1/manifests/$library/$2/latest" | cut -d'"' -f4 | sort
}

# pull HOST NAME [MEMBERS]: by its own ollana, each line behind the milliseconds at which it came.
pull() {
    local line
    local_api "$1" /api/pull -d "{\"model\":\"$2\"${3:+,$3}}" |
        while IFS= read -r line; do echo "$(now_ms) $line"; done >"$work/pull-$1"
    [[ $(tail -n 1 "$work/pull-$1") == *'"success"'* ]] || { tail -n 1 "$work/pull-$1" && return 1; }
}

# pull_aside HOST NAME: goes on while the script does. ends HOST: it has, well.
pull_aside() {
    rm -f "$work/ended-$1"
    { if pull "$@" >"$work/error-$1"; then echo well; else cat "$work/error-$1"; fi >"$work/ended-$1.new"; mv "$work/ended-$1.new" "$work/ended-$1"; } &
}
ends() { within 60 test -e "$work/ended-$1" && prints '^well$' cat "$work/ended-$1"; }

# whole HOST NAME [STORE]: its layers are those of the registry (of that store), and each is what its name says.
whole() {
    local digest path
    [ "$(layers_of "$work/$1/models" "$2")" = "$(layers_of "${3:-$store}" "$2")" ] || { echo "other layers" && return 1; }
    for digest in $(layers_of "$work/$1/models" "$2"); do
        path=$work/$1/models/blobs/${digest/:/-}
        [ "sha256:$(sha256sum <"$path" | cut -d' ' -f1)" = "$digest" ] || { echo "$digest is something else" && return 1; }
    done
}

# pulls HOST NAME: it does, and what it has then is right. Prints for how long, and what the registry gave.
pulls() {
    local start
    start=$(now_ms)
    pull "$@" || return 1
    start=$(($(now_ms) - start))
    whole "$1" "$2" || return 1
    echo "$start ms, $(($(given "$2") / MB)) MB from the registry"
}

# under_way HOST: megabytes of its pull so far.
under_way() {
    grep -o '"completed":[0-9]*' "$work/pull-$1" | cut -d: -f2 | sort -n | tail -n 1 | awk -v mb="$MB" '{ print int($1 / mb) }'
}
has_come() { [ "$(under_way "$1")" -ge "$2" ]; }

# slow HOST MBIT, fast HOST: how much it can send.
slow() { on "$1" tc qdisc replace dev lan0 root tbf rate "$2mbit" burst 256k latency 100ms; }
fast() { on "$1" tc qdisc del dev lan0 root 2>/dev/null || true; }
sent() { on "$1" cat /sys/class/net/lan0/statistics/tx_bytes; }

# Files that nobody finishes any more. Ollama removes its partial ones when it is started.
leftover() { find "$work/$1/models/blobs" -regextype egrep -regex '.*/sha256-[0-9]{6,12}' | grep .; }

between_cases() {
    local host
    internet '{}'
    for host in "${servers[@]}"; do
        fast "$host"
        plug "$host" up
        for name in ollama ollana; do
            [ -n "${pids[$name-$host]:-}" ] || "start_$name" "$host"
        done
        within 20 local_api "$host" /api/version --fail >/dev/null
    done
}

# The registry gives 4 MB a second: whatever is faster came from A.
check_donated() {
    fresh donated 64
    have a donated
    internet '{"rate":4000000}'
    check "a pull takes its bytes from A" pulls d donated
    check "the registry gave next to nothing" given_at_most donated 8
    check "the first of A's bytes came at once" first_byte 300
    check "its lines are a pull's lines" lines_are_whole
    fresh pair 24 24
    have a pair
    check "each layer comes from A" pulls d pair
    check "the registry gave next to nothing of the two" given_at_most pair 12
}
given_at_most() { echo "$(($(given "$1") / MB)) MB" && (($(given "$1") <= $2 * MB)); }
# From the first line with a digest to the first that has more than the registry can have given.
first_byte() {
    awk -v limit="$1" -v mb="$MB" '
        match($0, /"completed":[0-9]+/) { completed = substr($0, RSTART + 12, RLENGTH - 12) + 0 }
        /"digest"/ && !start { start = $1 }
        /"digest"/ && !first && completed > 4 * mb { first = $1 }
        END { print first - start " ms"; exit !first || first - start > limit }' "$work/pull-d"
}
lines_are_whole() {
    sed 's/^[0-9]* //' "$work/pull-d" | python3 -c '
import json, sys
total, last = {}, {}
for line in map(json.loads, sys.stdin):
    assert "error" not in line, line
    if digest := line.get("digest"):
        assert line["status"] == "pulling " + digest[7:19], line
        assert total.setdefault(digest, line["total"]) == line["total"], line
        completed = line.get("completed", 0)
        assert last.get(digest, 0) <= completed <= line["total"], line
        last[digest] = completed
assert line == {"status": "success"}, line
assert all(last[digest] == total[digest] for digest in total), last
print(len(last), "layers")'
}

# Both ways to be gone: the process, whose connections end, and the cable, behind which they just rest.
check_dies() {
    local how
    for how in process cable; do
        fresh "dies-$how" 48
        have a "dies-$how"
        slow a 80
        internet '{"rate":20000000}'
        pull_aside d "dies-$how"
        check "A gives, by its $how" within 8 has_come d 8
        if [ "$how" = process ]; then stop ollana-a KILL; else plug a down; fi
        check "A's $how is gone: the pull goes on" ends d
        check "A's $how is gone: it is what it should be" whole d "dies-$how"
        between_cases
    done
}

check_two_donors() {
    local first=a other=c before_a before_c
    fresh two 48
    have a two
    have c two
    slow a 80
    slow c 80
    internet '{"rate":2000000}'
    before_a=$(sent a) before_c=$(sent c)
    pull_aside d two
    check "one of two gives" within 8 has_come d 12
    (($(sent a) - before_a > $(sent c) - before_c)) || first=c other=a
    stop "ollana-$first" KILL
    check "${first^} is gone: the pull ends well" ends d
    check "${first^} is gone: it is what it should be" whole d two
    check "${first^} is gone: ${other^} gave the rest, not the registry" given_at_most two 12
}

# A's file is not what its name says, as after a fault of its disk or on a machine that lies.
check_wrong_bytes() {
    local path
    fresh wrong 32
    have a wrong
    path=$work/a/models/blobs/$(largest wrong)
    printf 'not what it was' | dd of="$path" bs=1 seek=$((20 * MB)) conv=notrunc status=none
    check "A's bytes are wrong: the pull gets the right ones" pulls d wrong
    check "A's bytes are wrong: they came from the registry" given_at_least wrong 30
    # One that doesn't remember what A gave: it wouldn't ask it for ten minutes.
    stop ollana-d
    start_ollana d
    within 20 local_api d /api/version --fail >/dev/null
    fresh foul 32
    have a foul
    internet "{\"wrong\":\"$(largest foul | tr - :)\",\"rate\":4000000}"
    check "the registry's bytes are wrong: A's are not" pulls d foul
}
given_at_least() { echo "$(($(given "$1") / MB)) MB" && (($(given "$1") >= $2 * MB)); }
largest() { (cd "$store/blobs" && layers_of "$store" "$1" | tr : - | xargs ls -S | head -n 1); }

# In C's place is a machine that lies, which D has been told of. It is given no more than its time.
check_rogue() {
    local way
    stop ollana-c
    stop ollana-d
    start rogue c python3 "$here/rogue.py" "$((24 * MB))" 11435 "$work/rogue"
    for way in wrong short long redirect silence trickle; do
        # One that remembers nothing of it yet.
        start_ollana d --server "${place[c]}"
        within 20 local_api d /api/version --fail >/dev/null
        fresh "rogue-$way" 24
        echo "$way" >"$work/rogue"
        internet '{"rate":8000000}'
        case $way in silence | trickle) internet '{"rate":1000000}' ;; esac
        pull_aside d "rogue-$way"
        # Slower than the rest can be, so that D has asked; then as fast as it goes.
        within 8 grep -q "^[A-Z]* $way " "$work/rogue.log" >/dev/null || true
        [ "$way" = redirect ] || within 8 grep -q "^GET $way " "$work/rogue.log" >/dev/null || true
        internet '{}'
        check "a rogue machine's $way: the pull ends well" ends d
        check "a rogue machine's $way: it is what it should be" whole d "rogue-$way"
        check "a rogue machine's $way: it was asked" grep -q " $way " "$work/rogue.log"
        stop ollana-d
    done
    stop rogue
}

# D's models are on a small disk of their own.
check_full_disk() {
    fresh full 64
    have a full
    stop ollama-d
    mv "$work/d/models" "$work/d/kept"
    mkdir "$work/d/models"
    on d true
    mount -t tmpfs -o size=40m none "$work/d/models"
    stop ollana-d
    start_ollama d
    start_ollana d
    within 20 local_api d /api/version --fail >/dev/null
    local before
    before=$(sent a)
    expect "the disk is full: the pull says so" 'space|disk' not pull d full
    check "the disk is full: A sent next to nothing" sent_at_most a "$before" 8
    check "the disk is full: nothing is left behind" not leftover d
    stop ollana-d
    stop ollama-d
    umount "$work/d/models"
    rmdir "$work/d/models"
    mv "$work/d/kept" "$work/d/models"
}
sent_at_most() {
    local sent
    sent=$((($(sent "$1") - $2) / MB))
    echo "$sent MB" && ((sent <= $3))
}

check_leaves() {
    local before
    fresh leaves 48
    have a leaves
    slow a 80
    internet '{"rate":1000000}'
    start leaving d curl -sSN --max-time 60 http://127.0.0.1:11435/api/pull -d '{"model":"leaves"}'
    check "the client sees it come" within 8 grep -q '"completed":1[0-9]\{7\}' "$work/leaving.log"
    stop leaving KILL
    check "the client left: the upload to D's Ollama ends" within 3 not leftover d
    sleep 1
    before=$(sent a)
    sleep 1
    check "the client left: A sends no more" sent_at_most a "$before" 1
    fast a
    check "the client comes again: the pull goes on" pulls d leaves
}

# A begins earlier, and the internet has 12 MB a second for all of them: C and D have a quarter of
# the layer when A has all of it.
check_at_once() {
    local host
    fresh at-once 48 9
    internet '{"rate":12000000}'
    for host in "${servers[@]}"; do
        pull_aside "$host" at-once
        [ "$host" != a ] || within 10 has_come a 36 >/dev/null
    done
    for host in "${servers[@]}"; do
        check "three pull it at once: ${host^} ends well" ends "$host"
        check "three pull it at once: what ${host^} has is right" whole "$host" at-once
    done
    check "three pull it at once: what A has got C and D take from it" given_at_most at-once 135
}

# with_key HOST…: only these have an ollana from now on, and they are paired.
with_key() {
    local host
    [ -s "$work/shared-key" ] || (umask 077 && openssl rand -hex 32 >"$work/shared-key")
    for host in "${servers[@]}"; do stop "ollana-$host"; done
    for host in "$@"; do start_ollana "$host" --key-file "$work/shared-key"; done
    for host in "$@"; do within 20 local_api "$host" /api/version --fail >/dev/null; done
}
without_key() {
    local host
    for host in "$@"; do stop "ollana-$host"; done
}

# What D gets of A's models must be the same to the last digest, and work. The internet is gone.
check_copies() {
    local name
    make_model a made "$gguf"
    make_model a pulled "$(variant 5)"
    # As a registry would have given it.
    name=$work/a/models/manifests/$library/pulled/latest
    printf %s "$(sed 's/,"from":"[^"]*"//g' "$name")" >"$name"
    with_key a d
    internet '{"away":true}'
    for name in pulled made; do
        check "ollana cp $name@A" on d timeout 60 "$ollana" cp "$name@ollana-a"
        check "$name: the same layers" whole d "$name" "$work/a/models"
        check "$name: nothing says where it was made" says_nothing d "$name"
        expect "$name: generates" '"done":true' ask d /api/generate \
            -d "{\"model\":\"$name\",\"prompt\":\"hi\",\"stream\":false,\"options\":{\"num_predict\":8}}"
    done
    expect "no other name is left" '^made:latest pulled:latest $' copied
    check "nothing else is left" not leftover d
    # Over what is there: never a gap, and the old layers go.
    check "ollana cp over what is there" on d timeout 60 "$ollana" cp made@ollana-a
    check "over what is there: the same layers" whole d made "$work/a/models"
    without_key a d
}
says_nothing() { [ -s "$work/$1/models/manifests/$library/$2/latest" ] && not grep '"from"' "$work/$1/models/manifests/$library/$2/latest"; }
# D's models, but for those of other checks.
copied() { ask d /api/tags | grep -o '"name":"[^"]*"' | cut -d'"' -f4 | grep -E 'made|pulled|/' | sort | tr '\n' ' '; }

# A's ollana doesn't find the models of A's Ollama, which sends them itself: one in several parts, too.
check_unreadable() {
    local name
    make_model a hidden "$gguf"
    fresh parts 230
    have a parts
    internet '{"away":true}'
    readable=$work/nowhere with_key a d
    stop ollana-d
    start_ollana d --key-file "$work/shared-key"
    within 20 local_api d /api/version --fail >/dev/null
    for name in hidden parts; do
        check "a store that can't be read: ollana cp $name@A" on d timeout 60 "$ollana" cp "$name@ollana-a"
        check "a store that can't be read: $name has the same layers" whole d "$name" "$work/a/models"
    done
    check "a store that can't be read: nothing says where it was made" says_nothing d hidden
    expect "a store that can't be read: it generates" '"done":true' ask d /api/generate \
        -d '{"model":"hidden","prompt":"hi","stream":false,"options":{"num_predict":8}}'
    check "a store that can't be read: A has no other name" not names_for_a_moment a
    start leaving d curl -sSN --max-time 60 -H 'X-Ollana-Copy: ollana-a' http://127.0.0.1:11435/api/pull -d '{"model":"parts"}'
    stop leaving KILL
    check "a store that can't be read: who leaves leaves nothing" within 5 not names_for_a_moment a
    without_key a d
}
names_for_a_moment() { ask "$1" /api/tags | grep ollana-copy; }

check_encrypted() {
    fresh sealed 64
    have a sealed
    with_key a d
    internet '{"rate":4000000}'
    check "over an encrypted hop: the pull takes its bytes from A" pulls d sealed
    check "over an encrypted hop: the registry gave next to nothing" given_at_most sealed 8
    check "over an encrypted hop: nobody else gets them" not on c curl -sS --fail --max-time 10 -o "$work/stolen" \
        "http://${place[a]}/ollana/blobs/$(largest sealed | tr - :)"
    without_key a d
}
