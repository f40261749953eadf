import { existsSync } from 'node:fs';
import { join } from 'node:path';

// Imported before everything else: on an older Node the other imports fail with errors that do not explain it.
const { engines } = require('../package.json') as { engines: { node: string } };

const numbers = (version: string): [number, number] => {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return [major, minor];
};

const needed = engines.node.replace('>=', '');
const [major, minor] = numbers(process.versions.node);
const [neededMajor, neededMinor] = numbers(needed);
if (major < neededMajor || (major === neededMajor && minor < neededMinor)) {
  const remedy = existsSync(join(__dirname, '../scripts/with-node.sh'))
    ? " In the project's folder, put scripts/with-node.sh before the command: it finds or fetches a newer one."
    : '';
  console.error(`This program needs Node ${needed} or newer; this is ${process.versions.node}.${remedy}`);
  process.exit(1);
}
