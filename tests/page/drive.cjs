// A browser for a test: takes commands as lines of JSON, and answers each with a line.
//   {"open": URL, "width": 360, "dark": true, "script": false}   another page instead of the last one
//   {"eval": "1 + 1"}                                            what an expression comes to there
//   {"shot": "PATH"}                                             a picture of all of it
//   {"type": "text", "into": "#key"}                             keys pressed, and Enter
//   {"seen": true}                                               errors and requests since it was opened
'use strict';
const fs = require('fs');
const readline = require('readline');
const puppeteer = require('puppeteer-core');

(async () => {
  const browser = await puppeteer.launch({
    executablePath: process.env.PATH.split(':').map((folder) => folder + '/chromium').find(fs.existsSync),
    // As root it has no sandbox of its own; what it loads is magent's.
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
  });
  let page, errors = [], requests = [];
  const open = async (command) => {
    if (page) await page.close();
    [errors, requests] = [[], []];
    page = await browser.newPage();
    page.on('console', (message) => { if (message.type() !== 'log') errors.push(message.text()); });
    page.on('pageerror', (error) => errors.push(String(error)));
    page.on('requestfailed', (request) => errors.push(request.url() + ' ' + request.failure().errorText));
    page.on('request', (request) => requests.push(request.url()));
    await page.setJavaScriptEnabled(command.script !== false);
    await page.setViewport({ width: command.width, height: 900 });
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: command.dark ? 'dark' : 'light' }]);
    await page.goto(command.open, { waitUntil: 'load' });
  };
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    let answer = null;
    try {
      if (command.open) await open(command);
      else if (command.eval) answer = await page.evaluate(command.eval);
      else if (command.shot) await page.screenshot({ path: command.shot, fullPage: true });
      else if (command.into) { await page.type(command.into, command.type); await page.keyboard.press('Enter'); }
      else if (command.seen) answer = { errors, requests };
      process.stdout.write(JSON.stringify({ answer: answer === undefined ? null : answer }) + '\n');
    } catch (error) {
      process.stdout.write(JSON.stringify({ failed: String(error) }) + '\n');
    }
  }
  await browser.close();
})();
