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
  let loaded = list.slice(0, hot).map((one, at) => ({ ...one, size_vram: Math.round(one.size * (at ? .62 : 1)), expires_at: '2026-12-01T00:00:00Z', context_length: 8192 }));
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
      const { model, prompt = '', keep_alive } = JSON.parse(body || '{}');
      if (keep_alive === 0 && model.startsWith('stuck')) { answer.writeHead(500, { 'Content-Type': 'application/json' }); return answer.end(JSON.stringify({ error: 'stuck ' + EVIL })); }
      if (keep_alive === 0) { loaded = loaded.filter(one => one.name !== model); return json({ model, response: '', done: true, done_reason: 'unload' }); }
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

const ollana = async (...options) => ollanaAt(await freePort(), ...options);
async function ollanaAt(port, ...options) {
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
  const shoot = async (page, name, fullPage = true) => {
    // What is out of sight is drawn, too.
    await page.evaluate(() => document.querySelectorAll('.server').forEach(node => { node.style.contentVisibility = 'visible'; }) || scrollTo(0, 0));
    await page.screenshot({ path: join(SHOTS, name + '.png'), fullPage });
  };
  const text = (page, selector) => page.locator(selector).innerText();
  // As it looks to everybody: light and dark, wide and on the smallest phone.
  const VIEWS = [['', {}], ['-dark', { dark: true }], ['-phone', { width: 320, height: 640 }], ['-phone-dark', { width: 320, height: 640, dark: true }]];
  const looks = async (url, name, wait) => {
    for (const [kind, options] of VIEWS) {
      const page = await open(url, options);
      await wait(page);
      await fits(page);
      await shoot(page, name + kind);
      await page.context().close();
    }
  };
  // The page shows it, soon.
  const shows = (page, selector, pattern) => page.waitForFunction(([selector, source, flags]) => new RegExp(source, flags).test(document.querySelector(selector).innerText), [selector, pattern.source, pattern.flags])
    .catch(async () => assert.match(await text(page, selector), pattern));
  const fits = async page => assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing is wider than the page');

  // No server yet: what to do.
  {
    const { url, port, child } = await client();
    const page = await open(url);
    await page.locator('#empty').waitFor();
    await shows(page, '#empty', /No server found yet[\s\S]*firewall[\s\S]*ollana --server HOST/);
    assert.equal(await text(page, '#pill'), 'no server');
    assert.equal(await page.locator('#top').isVisible(), false);
    await fits(page);
    await looks(url, 'empty', page => page.locator('#empty').waitFor());
    // The daemon is gone, and comes back to a page that is still there, and takes up its new token.
    const tokenOf = () => page.locator('meta[name=ollana-token]').getAttribute('content');
    const before = await tokenOf();
    await wait(1500);
    child.kill();
    await page.locator('.note.bad').waitFor();
    await shows(page, '.note.bad', /ollana doesn’t answer.*Trying again/);
    await shoot(page, 'gone');
    assert.equal(await page.evaluate(() => moved('11434')[1].href + moved('11435')[1].href + moved('80').length), 'http://127.0.0.1:11435/ollana/http://127.0.0.1:11434/ollana/0');
    await ollanaAt(port, '--mode', 'client');
    await shows(page, '#pill', /^no server$/);
    await page.waitForFunction(before => document.querySelector('meta[name=ollana-token]').content !== before, before);
    // One that is held back is none that is ready.
    assert.equal(await page.evaluate(() => [['ready', null], ['ready', 'held_back'], ['down', null]].map(([health, trust]) => works({ health, trust })).join()), 'true,false,false');
    await page.context().close();
  }

  // The only server is down: what happened, since when, what to do.
  {
    const { url } = await client(await freePort());
    const down = page => page.locator('#help').waitFor();
    const page = await open(url);
    await down(page);
    await shows(page, '#help', /^127.0.0.1:\d+ is down\s+connection refused: nothing listens there, since .* \(\d+ s\)\s+The machine is on, .* start Ollama and ollana on it[\s\S]*ollana doctor on this machine finds out more/);
    assert.equal(await text(page, '#notes'), '', 'nothing is told twice');
    assert.equal(await text(page, '#pill'), '0 of 1 server ready');
    assert.equal(await page.locator('#down img').count(), 0);
    await looks(url, 'down', down);
    await page.context().close();
    const own = await ollana('--mode', 'server', '--ollama', 'http://127.0.0.1:' + await freePort());
    const ownPage = await open(own.url);
    await down(ownPage);
    await shows(ownPage, '#help', /Ollama on this machine is down[\s\S]*start Ollama on this machine, with ollama serve/);
    await shoot(ownPage, 'down-own');
    // The other causes; a name that is like one of them makes no difference.
    for (const [reason, want] of [['connecting timed out: it is off, or a firewall drops it', /^Switch it on.* TCP 7 through/], ['Ollama isn\'t running on repair-shop', /^Start Ollama there/],
      ['desk answers paired machines only: run \'ollana pair\' on both', /ollana pair/], ['can\'t resolve refused: no such name', /spelled right/], ['no route to host', /one network or VPN/], ['something new', /ollana doctor/]]) {
      assert.match(await ownPage.evaluate(reason => advice({ reason, addresses: ['10.0.0.1:7'] }), reason), want);
    }
    await ownPage.context().close();
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
    await shows(page, '#transfers', /Pulling gpt-oss:120b on [\s\S]*\d+ % of 38 GB, from desktop, [\d.]+ [MG]B\/s, \d+ s left/);
    await shows(page, '#saved', /^41 GB not downloaded again$/);
    await shows(page, '#models', /, version beefbee[\s\S]*, version qwen3|, version qwen3[\s\S]*, version beefbee/);
    await page.locator('#lan .flow').first().waitFor({ state: 'attached' });
    assert.equal(await page.locator('#lan .node').count(), 3);
    await shows(page, '#pill', /2 of 3 servers ready/);
    await shows(page, '#notes', new RegExp(`127.0.0.1:${away} is down: connection refused`));
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
    await shows(page, '#nowpart', /^Running now\s+Requests\s+\d+\s+Waiting/);
    await shows(page, '#sincepart', /^Since the start, .* ago\s+Requests\s+\d+\s+Failed\s+[1-9]\d*\s+Tokens/);
    await shows(page, '#servers', /\d requests? running now[\s\S]*since the start: \d+ requests?/);
    await shows(page, '#servers', /llama3.3:70b[\s\S]*loaded, all on the graphics card, 8,192 tokens of context[\s\S]*loaded, 62 % on the card, the rest in memory/);
    await shows(page, '#models', new RegExp(`127.0.0.1:${big}, all on the card, 8,192 tokens`));
    await shows(page, '#servers', /the machine is on, but neither ollana nor/i);
    await page.setViewportSize({ width: 1120, height: 620 });
    await page.evaluate(() => scrollTo(0, 0));
    await shoot(page, 'page', false);
    const state = await (await fetch(url + '/ollana/status')).json();
    assert.equal(state.version, 1);
    await looks(url, 'home', async other => {
      await other.waitForFunction(() => document.querySelectorAll('#models tr').length === 6);
      await other.locator('#lan .node').first().waitFor({ state: 'attached' });
    });
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
    const page = await open(url, { width: 320, height: 640 });
    await page.locator('#top').waitFor();
    await page.waitForFunction(() => document.querySelector('#shared').innerText === 'this machine can’t share its models');
    await page.waitForFunction(() => /Ollama's models in .* can't be read/.test(document.querySelector('#notes').innerText));
    ask(url, '/api/pull', { model: 'tensors:7b' });
    await page.waitForFunction(() => /from the registry \(this kind of model can’t be shared\)/.test(document.querySelector('#transfers').innerText));
    ask(url, '/api/pull', { model: 'gpt-oss:120b' });
    await page.waitForFunction(() => /GB from desktop\s+[\d.]+ GB from the registry/.test(document.querySelector('#sources').innerText));
    assert.equal(await page.locator('#parts span').count(), 2);
    await shows(page, '#transfers', /^Pulling .*on this machine/);
    assert.equal(await text(page, '#saved'), '0 B not downloaded again');
    await fits(page);
    await shoot(page, 'pulls-phone');
    await page.setViewportSize({ width: 1120, height: 900 });
    await wait(1300);
    await fits(page);
    await shoot(page, 'pulls');
    await page.context().close();
  }

  // The button takes a model out of the memory of its server, and only there; what it can't is told.
  {
    const ports = await Promise.all([0, 1].map(() => ollama([['llama3.2:1b', 1.3e9, '1.2B'], ['stuck:1b', 1e9, '1B']], 2)));
    const { url } = await client(...ports);
    const page = await open(url);
    const card = port => page.locator('.server', { hasText: `127.0.0.1:${port}` });
    const button = (port, model) => card(port).getByRole('button', { name: `Unload ${model} from 127.0.0.1:${port}`, exact: true });
    for (const port of ports) await button(port, 'llama3.2:1b').waitFor();
    await button(ports[1], 'llama3.2:1b').focus();
    await page.keyboard.press('Enter');
    await button(ports[1], 'llama3.2:1b').waitFor({ state: 'detached' });
    const inMemory = port => fetch(`http://127.0.0.1:${port}/api/ps`).then(answer => answer.json()).then(({ models }) => models.map(model => model.name));
    assert.deepEqual(await inMemory(ports[1]), ['stuck:1b']);
    assert.deepEqual(await inMemory(ports[0]), ['llama3.2:1b', 'stuck:1b']);
    assert.equal(await button(ports[0], 'llama3.2:1b').count(), 1);
    await button(ports[0], 'stuck:1b').click();
    await card(ports[0]).getByText('not unloaded: 127.0.0.1:' + ports[0] + ': stuck <img').waitFor();
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    await fits(page);
    await shoot(page, 'unload');
    // Who may not, has no button.
    await page.route('**/ollana/', async route => {
      const answer = await route.fetch();
      route.fulfill({ response: answer, body: (await answer.text()).replace(/(ollana-token" content=")\w+/, '$1') });
    });
    await page.reload();
    await card(ports[0]).getByText('llama3.2:1b').waitFor();
    assert.equal(await page.getByRole('button', { name: /^Unload/ }).count(), 0);
    await page.context().close();
  }

  // One server, and twelve: each has its name in the picture.
  {
    const ports = await Promise.all(Array.from({ length: 12 }, (_, n) => ollama([['llama3.2:1b', 1.3e9, '1.2B'], [`own-${n}:7b`, 4e9, '7B']], n % 3)));
    for (const [name, some] of [['one', ports.slice(0, 1)], ['twelve', ports]]) {
      const { url } = await client(...some);
      for (let n = 0; n < some.length; n += 4) ask(url, '/api/generate', { model: `own-${n}:7b`, prompt: 'long' });
      await looks(url, name, async page => {
        await page.waitForFunction(text => document.querySelector('#pill').innerText === text, `${some.length} of ${some.length} server${some.length > 1 ? 's' : ''} ready`);
        await page.waitForFunction(count => document.querySelectorAll('#models tr').length === count, some.length + 1);
        const told = await page.locator('#lan svg').textContent();
        for (const port of some) assert.ok(told.includes(`127.0.0.1:${port}`), told);
        // No name is cut off, and none lies on another. In one go, as the picture is drawn anew each second.
        const wrong = await page.evaluate(() => {
          const boxOf = node => node.getBoundingClientRect(), frame = boxOf(document.querySelector('#lan'));
          const boxes = [...document.querySelectorAll('#lan text')].map(node => [node.textContent, boxOf(node)]);
          const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 4 || b.bottom <= a.top + 4;
          return boxes.filter(([, a], at) => a.left < frame.left || a.right > frame.right || !boxes.slice(at + 1).every(([, b]) => apart(a, b))).map(([text]) => text);
        });
        assert.deepEqual(wrong, [], 'apart, and in the picture');
      });
    }
  }

  // 64 servers with 100 models each.
  {
    const shared = Array.from({ length: 100 }, (_, n) => [`model-with-a-long-name-${n}:8b-instruct-q4_K_M`, 5e9 + n, '8.0B']);
    const ports = await Promise.all(Array.from({ length: 64 }, (_, n) => ollama(shared.map(([name, ...rest], m) => [m < 50 ? name : `${n}-${name}`, ...rest]), n % 5)));
    const { url } = await client(...ports);
    const page = await open(url);
    await page.waitForFunction(() => /64 of 64 servers ready/.test(document.querySelector('#pill').innerText), null, { timeout: 60000 });
    await page.waitForFunction(() => /and 3190 more/.test(document.querySelector('#more').innerText), null, { timeout: 60000 });
    for (let n = 0; n < 12; n++) ask(url, '/api/generate', { model: `${n * 5}-${shared[60][0]}`, prompt: 'long' });
    await page.locator('#filter').fill('63-model-with-a-long-name-77');
    await page.waitForFunction(() => document.querySelectorAll('#models tr').length === 1);
    await page.locator('#filter').fill('');
    await wait(2500);
    const time = await page.evaluate(async () => { const begun = performance.now(); await (await fetch('status?brief')).text(); return performance.now() - begun; });
    console.log(`64 servers x 100 models: status?brief in ${time.toFixed(0)} ms`);
    await fits(page);
    await shoot(page, 'many', false);
    await page.setViewportSize({ width: 320, height: 640 });
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
const gone = children.map(child => child.exitCode === null && child.signalCode === null && new Promise(done => child.once('exit', done)));
children.forEach(child => child.kill());
await Promise.all(gone);
servers.forEach(server => { server.closeAllConnections(); server.close(); });
rmSync(work, { recursive: true, force: true });
process.exit(code);
