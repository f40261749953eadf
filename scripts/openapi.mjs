// Writes docs/openapi.json from the built application; with --check, fails if the committed one differs.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const FILE = 'docs/openapi.json';
const require = createRequire(import.meta.url);
require('reflect-metadata');
const { createApp } = require('../dist/app.js');
const { describeApi } = require('../dist/http/openapi.js');
const { readSettings } = require('../dist/settings.js');

const settings = readSettings({
  CONTROL_PLANE_DATABASE_URL: 'sqlite::memory:',
  CONTROL_PLANE_ADMIN_TOKEN: 'only-for-this-document-1',
  CONTROL_PLANE_LOG_LEVEL: 'silent',
});
const { app, stop } = await createApp(settings);
const text = `${JSON.stringify(describeApi(app), null, 2)}\n`;
await stop();

if (!process.argv.includes('--check')) {
  writeFileSync(FILE, text);
} else if (readFileSync(FILE, 'utf8') !== text) {
  console.error(`${FILE} is out of date: run "npm run openapi" and commit it.`);
  process.exitCode = 1;
}
