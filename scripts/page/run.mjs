// Drives the page at /ollana/ in headless Chromium: real daemons in front of stand-ins for Ollama,
// in every state that a home can be in. Started by scripts/page.sh, which says what is needed.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, mkdirSync, rmSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createRequire } from 'node:module';

const { chromium } = createRequire(join(process.env.PAGE_MODULES, 'x.js'))('playwright-core');
const BIN = process.env.OLLANA_BIN;
const SHOTS = process.env.PAGE_SHOTS;
const EVIL = '<img src=x onerror="window.hacked=1">';
const wait = ms => new Promise(done => setTimeout(done, ms));
const work = mkdtempSync(join(tmpdir(), 'ollana-page-'));
const children = [];
const servers = [];

const freePort = () => new Promise(done => {
  const socket = net.createServer().listen(0, '127.0.0.1', () => {
    const { port } = socket.address();
    socket.close(() => done(port));
  });
});

// An Ollama with these models; the first `hot` of them are in memory. What is pulled there comes from a
// server and then from the registry, as the lines of a server's proxy say.
async function ollama(models, hot, { version = '0.13.1', pause = 25, saved = '' } = {}) {
  const list = models.map(([name, size, kind, digest = name]) => ({ name, model: name, size, digest, modified_at: '2026-01-01T00:00:00Z',
    details: { parameter_size: kind, quantization_level: 'Q4_K_M' } }));
  const loaded = list.slice(0, hot).map(one => ({ ...one, size_vram: one.size, expires_at: '2026-12-01T00:00:00Z', context_length: 8192 }));
  const server = http.createServer((request, answer) => {
    const json = body => { const text = JSON.stringify(body); answer.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) }); answer.end(text); };
    if (saved) answer.setHeader('X-Ollana-Saved', saved);
    if (request.url === '/api/version') return json({ version });
    if (request.url === '/api/tags') return json({ models: list });
    if (request.url === '/api/ps') return json({ models: loaded });
    if (request.url === '/v1/models') return json({ object: 'list', data: [] });
    let body = '';
    request.on('data', data => { body += data; });
    request.on('end', async () => {
      const { model, prompt = '' } = JSON.parse(body || '{}');
      if (prompt.includes('fail')) { answer.writeHead(500, { 'Content-Type': 'application/json' }); return answer.end('{"error":"out of memory ' + EVIL.replaceAll('"', "'") + '"}'); }
      answer.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
      const line = part => answer.write(JSON.stringify(part) + '\n');
      let gone = false;
      answer.on('close', () => { gone = true; });
      if (request.url === '/api/pull') {
        const layer = (name, total, completed, more) => line({ status: 'pulling ' + name, digest: 'sha256:' + name.repeat(16), total, completed, ...more });
        layer('1ea5', 2e9, 0);
        layer('1ea5', 2e9, 2e9);
        for (let done = 12; done <= 100 && !gone; done += 1) {
          if (model.startsWith('tensor')) line({ status: 'pulling model', total: 9e9, completed: done * 9e7 });
          else layer('8eeb', 38e9, done * 38e7, { from: 'desktop' });
          await wait(150);
        }
        return answer.end('{"status":"success"}\n');
      }
      if (prompt.includes('break')) { line({ model, response: 'one ' }); await wait(60); return answer.destroy(); }
      const count = prompt.includes('long') ? 2000 : 60;
      let told = 0;
      for (; told < count && !gone; told++) { line({ model, created_at: 'x', response: (told === 2 ? EVIL : 'word') + (told % 9 === 8 ? '. ' : ' '), done: false }); await wait(pause); }
      line({ model, done: true, eval_count: told, eval_duration: told * pause * 1e6 });
      answer.end();
    });
  });
  await new Promise(done => server.listen(0, '127.0.0.1', done));
  servers.push(server);
  return server.address().port;
}

async function ollana(...options) {
  const port = await freePort();
  const child = spawn(BIN, ['--listen', `127.0.0.1:${port}`, '--discovery-port', '0', '--state-dir', join(work, `state-${port}`), ...options],
    { stdio: 'ignore', env: { PATH: process.env.PATH, HOME: work } });
  children.push(child);
  for (let tries = 0; tries < 100; tries++) {
    const up = await fetch(`http://127.0.0.1:${port}/ollana/health`).then(answer => answer.ok, () => false);
    if (up) return { port, child, url: `http://127.0.0.1:${port}` };
    await wait(50);
  }
  throw new Error('ollana did not start');
}

// The names that people see are the machines'; here all are one machine, so each server is named.
const client = (...ports) => ollana('--mode', 'client', ...ports.flatMap(port => ['--server', typeof port === 'string' ? port : `127.0.0.1:${port}`]));
const ask = (url, path, body) => fetch(url + path, { method: 'POST', body: JSON.stringify(body) }).then(answer => answer.text()).catch(() => '');

async function main() {
  mkdirSync(SHOTS, { recursive: true });
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, headless: true, args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync'] });
  const complaints = [];
  const open = async (url, { width = 1120, height = 900, dark = false } = {}) => {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme: dark ? 'dark' : 'light', reducedMotion: 'no-preference' });
    const page = await context.newPage();
    page.on('pageerror', error => complaints.push(String(error)));
    page.on('console', message => { if (message.type() === 'error' && !/ERR_CONNECTION_REFUSED|status of 50\d/.test(message.text())) complaints.push(message.text()); });
    page.on('request', request => { if (!request.url().startsWith(url) && !request.url().startsWith('data:')) complaints.push('asked for ' + request.url()); });
    await page.goto(url + '/ollana/');
    return page;
  };
  const shoot = (page, name, fullPage = true) => page.screenshot({ path: join(SHOTS, name + '.png'), fullPage });
  const text = (page, selector) => page.locator(selector).innerText();
  const fits = async page => assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing is wider than the page');

  // No server yet: what to do.
  {
    const { url, child } = await client();
    const page = await open(url);
    await page.locator('#empty').waitFor();
    assert.match(await text(page, '#empty'), /No server found yet[\s\S]*firewall[\s\S]*ollana --server HOST/);
    assert.equal(await text(page, '#pill'), 'no server');
    assert.equal(await page.locator('#top').isVisible(), false);
    await shoot(page, 'empty');
    // The daemon is gone, and comes back to a page that is still there.
    child.kill();
    await page.locator('.note.bad').waitFor();
    assert.match(await text(page, '.note.bad'), /ollana doesn’t answer.*Trying again/);
    await shoot(page, 'gone');
    await page.context().close();
  }

  // A home: three machines, one of them away, a busy one, a pull, a failure, a hostile name.
  {
    const big = await ollama([['llama3.3:70b', 42.5e9, '70.6B'], ['qwen3:8b', 5.2e9, '8.2B'], ['nomic-embed-text:latest', 274e6, '137M']], 2, { pause: 22, saved: '41000000000' });
    const small = await ollama([['llama3.2:1b', 1.3e9, '1.2B'], ['qwen3:8b', 5.2e9, '8.2B', 'beef'.repeat(16)], [EVIL, 1e9, EVIL]], 1, { pause: 60, version: '0.12.6' });
    const away = await ollama([['llava:13b', 8e9, '13B']], 0);
    const { url } = await client(big, small, away);
    const page = await open(url);
    const models = count => page.waitForFunction(count => document.querySelectorAll('#models tr').length === count, count);
    await models(6);
    // What it has is known when it is away.
    servers.at(-1).close();
    servers.at(-1).closeAllConnections();
    await page.waitForFunction(() => /llava:13b[\s\S]*, away since \d/.test(document.querySelector('#models').innerText));
    await models(6);
    const load = setInterval(() => { ask(url, '/api/generate', { model: 'llama3.3:70b', prompt: 'long' }); }, 9000);
    for (const model of ['llama3.3:70b', 'llama3.3:70b', 'llama3.2:1b', 'qwen3:8b']) ask(url, '/api/generate', { model, prompt: 'long' });
    ask(url, '/api/pull', { model: 'gpt-oss:120b' });
    await ask(url, '/api/generate', { model: 'llama3.2:1b', prompt: 'break' });
    await page.locator('#transfers progress').waitFor();
    assert.match(await text(page, '#transfers'), /Pulling gpt-oss:120b on [\s\S]*\d+ % of 38 GB, from desktop, [\d.]+ [MG]B\/s, \d+ s left/);
    assert.equal(await text(page, '#saved'), '41 GB not downloaded again');
    assert.equal((await text(page, '#models')).match(/, version beefbee|, version qwen3/g).length, 2);
    await page.locator('#lan .flow').first().waitFor({ state: 'attached' });
    assert.equal(await page.locator('#lan .node').count(), 3);
    assert.match(await text(page, '#pill'), /2 of 3 servers ready/);
    assert.match(await text(page, '#notes'), new RegExp(`127.0.0.1:${away} is down: connection refused`));
    await page.waitForFunction(() => /one |broke|early|reset/.test(document.querySelector('#failures').innerText));
    const failures = await text(page, '#failures');
    assert.match(failures, /POST \/api\/generate/);
    assert.ok(!failures.includes('break'), 'never a prompt');
    // Whatever the network says is text.
    assert.ok((await text(page, '#models')).includes(EVIL));
    assert.equal(await page.locator('main img').count(), 0);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    // A test prompt streams, names who answered, and can be stopped; by keyboard alone.
    await page.locator('#model').selectOption('llama3.2:1b');
    await page.locator('#prompt').fill('hello');
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'send');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.querySelector('#answer').innerText.length > 30);
    assert.equal(await page.locator('#stop').isDisabled(), false, 'the answer comes in pieces');
    assert.ok((await text(page, '#answer')).includes(EVIL));
    await page.waitForFunction(() => /60 tokens from .*tokens\/s, first after/.test(document.querySelector('#told').innerText));
    await page.locator('#prompt').fill('a long one');
    await page.locator('#send').click();
    await page.waitForFunction(() => document.querySelector('#answer').innerText.length > 30);
    await page.locator('#stop').click();
    await page.waitForFunction(() => /stopped after \d+ tokens/.test(document.querySelector('#told').innerText));
    await page.locator('#prompt').fill('fail');
    await page.locator('#send').click();
    await page.waitForFunction(() => /failed: out of memory <img/.test(document.querySelector('#told').innerText));
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    await page.locator('#prompt').fill('Why is the sky blue? Answer in two sentences.');
    await page.locator('#send').click();
    await page.waitForFunction(() => /60 tokens from/.test(document.querySelector('#told').innerText));
    if (process.env.PAGE_LONG) await wait(60000); // For the picture: four minutes have a course.
    await page.waitForFunction(() => document.querySelector('.spark path.area').getAttribute('d').length > 60);
    await fits(page);
    await shoot(page, 'home');
    await page.setViewportSize({ width: 1120, height: 620 });
    await page.evaluate(() => scrollTo(0, 0));
    await shoot(page, 'page', false);
    const state = await (await fetch(url + '/ollana/status')).json();
    assert.equal(state.version, 1);
    for (const [name, options] of [['home-dark', { dark: true }], ['home-phone', { width: 360, height: 740 }], ['home-phone-dark', { width: 360, height: 740, dark: true }]]) {
      const other = await open(url, options);
      await other.waitForFunction(() => document.querySelectorAll('#models tr').length === 6);
      await other.locator('#lan .node').first().waitFor({ state: 'attached' });
      await fits(other);
      await shoot(other, name);
      await other.context().close();
    }
    // Named and labelled for those who don't see it.
    const unnamed = await page.evaluate(() => [...document.querySelectorAll('input, select, textarea, button, progress')]
      .filter(node => !(node.labels?.length || node.getAttribute('aria-label') || node.innerText)).map(node => node.outerHTML));
    assert.deepEqual(unnamed, []);
    assert.match(await page.locator('#lan svg').getAttribute('aria-label'), /connected to 3 servers, 2 ready/);
    clearInterval(load);
    await page.context().close();
  }

  // A machine that pulls: from whom it got what.
  {
    const own = await ollama([['llama3.2:1b', 1.3e9, '1.2B']], 0);
    const { url } = await ollana('--mode', 'server', '--ollama', 'http://127.0.0.1:' + own);
    const page = await open(url, { width: 360, height: 740 });
    await page.locator('#top').waitFor();
    assert.match(await text(page, '#shared'), /^this machine can’t share its models$/);
    assert.match(await text(page, '#notes'), /Ollama's models in .* can't be read/);
    ask(url, '/api/pull', { model: 'tensors:7b' });
    await page.waitForFunction(() => /from the registry \(this kind of model can’t be shared\)/.test(document.querySelector('#transfers').innerText));
    ask(url, '/api/pull', { model: 'gpt-oss:120b' });
    await page.waitForFunction(() => /GB from desktop\s+[\d.]+ GB from the registry/.test(document.querySelector('#sources').innerText));
    assert.equal(await page.locator('#parts span').count(), 2);
    assert.match(await text(page, '#transfers'), /^Pulling .*on this machine/);
    assert.equal(await text(page, '#saved'), '0 B not downloaded again');
    await fits(page);
    await shoot(page, 'pulls-phone');
    await page.setViewportSize({ width: 1120, height: 900 });
    await wait(1300);
    await fits(page);
    await shoot(page, 'pulls');
    await page.context().close();
  }

  // 64 servers with 100 models each.
  {
    const shared = Array.from({ length: 100 }, (_, n) => [`model-with-a-long-name-${n}:8b-instruct-q4_K_M`, 5e9 + n, '8.0B']);
    const ports = await Promise.all(Array.from({ length: 64 }, (_, n) => ollama(shared.map(([name, ...rest], m) => [m < 50 ? name : `${n}-${name}`, ...rest]), n % 5)));
    const { url } = await client(...ports);
    const page = await open(url);
    await page.waitForFunction(() => /64 of 64 servers ready/.test(document.querySelector('#pill').innerText), null, { timeout: 20000 });
    await page.waitForFunction(() => /and 3190 more/.test(document.querySelector('#more').innerText), null, { timeout: 20000 });
    for (let n = 0; n < 12; n++) ask(url, '/api/generate', { model: `${n * 5}-${shared[60][0]}`, prompt: 'long' });
    await page.locator('#filter').fill('63-model-with-a-long-name-77');
    await page.waitForFunction(() => document.querySelectorAll('#models tr').length === 1);
    await page.locator('#filter').fill('');
    await wait(2500);
    const time = await page.evaluate(async () => { const begun = performance.now(); await (await fetch('status?brief')).text(); return performance.now() - begun; });
    console.log(`64 servers x 100 models: status?brief in ${time.toFixed(0)} ms`);
    await fits(page);
    await shoot(page, 'many', false);
    await page.setViewportSize({ width: 360, height: 740 });
    await wait(1300);
    await fits(page);
    await shoot(page, 'many-phone', false);
    await page.context().close();
  }
  await browser.close();
  assert.deepEqual(complaints, [], 'the page made no errors and asked nobody else');
  console.log('the page does what it should; screenshots in ' + SHOTS);
}

let code = 0;
try { await main(); } catch (error) { console.error(error); code = 1; }
children.forEach(child => child.kill());
servers.forEach(server => { server.closeAllConnections(); server.close(); });
// A daemon may still be writing there.
rmSync(work, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
process.exit(code);
