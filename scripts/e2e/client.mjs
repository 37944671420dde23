// The official JavaScript client of Ollama. Usage: node client.mjs URL MODEL [TOKEN]
// Lines and exit status as in clients.py.

import assert from 'node:assert/strict'
import { Ollama } from 'ollama'

const [host, model, token] = process.argv.slice(2)
const headers = token ? { Authorization: `Bearer ${token}` } : {}
const client = new Ollama({ host, headers }) // it doesn't read OLLAMA_HOST
const messages = [{ role: 'user', content: 'hi' }]

async function lists() {
  const names = (await client.list()).models.map((m) => m.name)
  assert(names.includes(`${model}:latest`), names.join())
}

async function chatStreams() {
  const times = []
  let last
  for await (last of await client.chat({ model, messages, stream: true, options: { num_predict: 100, seed: 1 } })) {
    times.push(performance.now())
  }
  assert(last.done && last.eval_count > 0)
  const took = times.at(-1) - times[0]
  assert(times.length > 3, `only ${times.length} parts`)
  assert(took > last.eval_duration / 1e6 / 2, `${times.length} parts in ${took.toFixed()} ms`)
  const gap = Math.max(...times.slice(1).map((time, i) => time - times[i]))
  assert(gap < took / 2, `${gap.toFixed()} of ${took.toFixed()} ms in one gap`)
  return `${times.length} parts over ${(took / 1000).toFixed(2)} s`
}

// Ollama runs one request at a time here: the second answers only once the first has ended.
async function abortsMidStream() {
  const endless = await client.generate({ model, prompt: 'hi', stream: true, options: { num_predict: -1, seed: 1 } })
  let parts = 0
  await assert.rejects(async () => {
    for await (const _ of endless) if (++parts === 5) endless.abort()
  }, { name: 'AbortError' })
  const aborted = performance.now()
  const next = await client.generate({ model, prompt: 'hi', options: { num_predict: 4 } })
  const took = performance.now() - aborted
  assert(next.done && took < 5000, `the next answer took ${took.toFixed()} ms`)
  return `the next answer took ${took.toFixed()} ms`
}

async function embeds() {
  const { embeddings } = await client.embed({ model, input: ['one', 'two words'] })
  assert.deepEqual(embeddings.map((v) => v.length), [576, 576])
}

async function embedsTheOldWay() {
  assert.equal((await client.embeddings({ model, prompt: 'one' })).embedding.length, 576)
}

function deadline(ms) {
  return new Promise((_, reject) => setTimeout(reject, ms, new Error(`not done within ${ms} ms`)))
}

for (const check of [lists, chatStreams, abortsMidStream, embeds, embedsTheOldWay]) {
  const what = `node${token ? ' with a token' : ''}: ` + check.name.replace(/[A-Z]/g, (c) => ' ' + c.toLowerCase())
  try {
    const note = await Promise.race([check(), deadline(30_000)])
    console.log(`ok   ${what}` + (note ? ` (${note})` : ''))
  } catch (error) {
    console.log(`FAIL ${what}: ${String(error).replace(/\s+/g, ' ').slice(0, 300)}`)
  }
}
process.exit(0) // deadlines and idle connections would keep it alive
