"""The official Python clients of Ollama and OpenAI. Usage: clients.py URL MODEL [TOKEN]

One line for each check, like the shell's. A failed check doesn't stop the others, and
only a crash of this program itself makes its exit status non-zero.
"""

import hashlib
import os
import struct
import sys
import tempfile
import time

import httpx
import ollama
import openai

URL, MODEL = sys.argv[1:3]
TOKEN = (sys.argv[3:] or [None])[0]
# What an alias stands for, if MODEL is one: models are copied by their own names.
COPIED = os.environ.get("E2E_COPIED", MODEL)
TIMEOUT_S = 30
HI = [{"role": "user", "content": "hi"}]

FIELDS = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}
client = ollama.Client(host=URL, timeout=TIMEOUT_S, headers=FIELDS)
v1 = openai.OpenAI(base_url=f"{URL}/v1", api_key=TOKEN or "unused", timeout=TIMEOUT_S, max_retries=0)
http = httpx.Client(base_url=URL, timeout=TIMEOUT_S)


def lists():
    names = [m.model for m in client.list().models]
    assert f"{MODEL}:latest" in names, names


def shows():
    assert client.show(MODEL).details.format == "gguf"


def chat_streams():
    parts, times = [], []
    for part in client.chat(MODEL, HI, stream=True, options={"num_predict": 100, "seed": 1}):
        parts.append(part)
        times.append(time.monotonic())
    last = parts[-1]
    assert last.done and last.eval_count, last
    assert not any(part.done for part in parts[:-1])
    return spread(times, last.eval_duration / 1e9)


def spread(times, generation_s):
    """Parts that were held back on the way arrive in bunches, not all along the generation."""
    took = times[-1] - times[0]
    assert len(times) > 3, f"only {len(times)} parts"
    assert took > generation_s / 2, f"{len(times)} parts in {took:.3f} s of {generation_s:.3f} s"
    gap = max(after - before for before, after in zip(times, times[1:]))
    assert gap < took / 2, f"{gap:.3f} s of {took:.3f} s in one gap"
    return f"{len(times)} parts over {took:.2f} s"


def generates():
    answer = client.generate(MODEL, "hi", options={"num_predict": 16})
    assert answer.done and answer.response and 0 < answer.eval_count <= 16, answer


def embeds():
    vectors = client.embed(MODEL, ["one", "two words"]).embeddings
    assert [len(v) for v in vectors] == [576, 576]


def embeds_the_old_way():
    assert len(client.embeddings(MODEL, "one").embedding) == 576


def names_an_unknown_model():
    try:
        client.show("nosuch")
    except ollama.ResponseError as error:
        assert error.status_code == 404 and "not found" in error.error, error
    else:
        raise AssertionError("no error")


def copies_and_deletes():
    client.copy(COPIED, "copied")
    assert has("copied")
    client.delete("copied")
    assert not has("copied")


def has(name):
    return f"{name}:latest" in [m.model for m in client.list().models]


def uploads_and_creates():
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(small_gguf())
        file.flush()
        digest = blob_digest(file.name)
        assert http.head(f"/api/blobs/{digest}").status_code == 404
        assert client.create_blob(file.name) == digest
    assert http.head(f"/api/blobs/{digest}").status_code == 200
    note = create("uploaded", digest)
    assert has("uploaded")
    client.delete("uploaded")
    assert not has("uploaded")
    return note


def create(name, digest):
    """Servers from 0.5.5 on take `files`, older ones the text of a Modelfile."""
    try:
        return f"from files, {client.create(name, files={'a.gguf': digest}).status}"
    except ollama.ResponseError as error:
        assert error.status_code == 400 and "Modelfile" in error.error, error
    answer = http.post("/api/create", json={"model": name, "modelfile": f"FROM @{digest}"})
    assert answer.status_code == 200 and answer.text.endswith('{"status":"success"}\n'), answer.text
    return "from a Modelfile"


def blob_digest(path):
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def small_gguf():
    """A GGUF of 4 MB with one random tensor: enough to create a model, not to run it."""

    def text(value):
        return struct.pack("<Q", len(value)) + value

    floats = 1 << 20
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)  # version, tensors, key-value pairs
    head += text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")  # 8: a string
    head += text(b"token_embd.weight") + struct.pack("<IQIQ", 1, floats, 0, 0)  # 1 dimension, F32, at 0
    return head + bytes(-len(head) % 32) + os.urandom(4 * floats)


def openai_lists():
    listed = f"{MODEL}:latest" if MODEL == COPIED else MODEL
    assert listed in [m.id for m in v1.models.list()]


def openai_completes():
    answer = v1.chat.completions.create(model=MODEL, messages=HI, max_tokens=16)
    assert answer.choices[0].message.content and 0 < answer.usage.completion_tokens <= 16, answer


def openai_streams():
    started, times = time.monotonic(), []
    for part in v1.chat.completions.create(model=MODEL, messages=HI, max_tokens=100, seed=1, stream=True):
        times.append(time.monotonic())
    assert part.choices[0].finish_reason, part
    # This dialect tells no duration: take the time since the request, as the model is loaded already.
    return spread(times, times[-1] - started)


def openai_embeds():
    assert len(v1.embeddings.create(model=MODEL, input="one").data[0].embedding) == 576


def openai_names_an_unknown_model():
    try:
        v1.models.retrieve("nosuch")
    except openai.NotFoundError as error:
        assert "not found" in error.body["message"], error.body
    else:
        raise AssertionError("no error")


def may_not_delete():
    try:
        client.delete(MODEL)
    except ollama.ResponseError as error:
        assert error.status_code == 403 and "a token is good for" in error.error, error
    else:
        raise AssertionError("no error")
    assert has(MODEL)


def is_told_about_tokens():
    for name in ["", "ollana-0123456789abcdef0123456789abcdef"]:
        fields = {"Authorization": f"Bearer {name}"} if name else {}
        try:
            ollama.Client(host=URL, timeout=TIMEOUT_S, headers=fields).list()
        except ollama.ResponseError as error:
            assert error.status_code == 401 and "ollana token add" in error.error, error
        else:
            raise AssertionError("no error")


def openai_is_told_about_tokens():
    try:
        openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        assert "ollana token add" in error.body["message"], error.body
    else:
        raise AssertionError("no error")


for check in [
    lists, shows, chat_streams, generates, embeds, embeds_the_old_way, names_an_unknown_model,
    *([may_not_delete, is_told_about_tokens, openai_is_told_about_tokens] if TOKEN
      else [copies_and_deletes, uploads_and_creates]),
    openai_lists, openai_completes, openai_streams, openai_embeds, openai_names_an_unknown_model,
]:  # fmt: skip
    what = "python" + (" with a token" if TOKEN else "") + ": " + check.__name__.replace("_", " ")
    try:
        note = check()
    except Exception as error:  # whatever it is, the next check is another matter
        why = " ".join(f"{type(error).__name__} {error}".split())
        print(f"FAIL {what}: {why[:300]}", flush=True)
    else:
        print(f"ok   {what}" + (f" ({note})" if note else ""), flush=True)
