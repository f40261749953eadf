// Runs the checks and the tests, the tests even if a check fails. The last line is the count of tests; zero tests is a failure.
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { relative } from 'node:path';

const RESULTS = '.cache/jest.json';

/** How many of the slowest test files are printed. */
const SHOWN = 20;

function run(...args) {
  return new Promise((resolve) => {
    const child = spawn('npm', ['run', ...args], { stdio: 'inherit' });
    const stop = (signal) => child.kill(signal);
    process.once('SIGTERM', stop).once('SIGINT', stop);
    child.on('exit', (code) => {
      process.off('SIGTERM', stop).off('SIGINT', stop);
      resolve(code === 0);
    });
  });
}

function counts() {
  try {
    const results = JSON.parse(readFileSync(RESULTS, 'utf8'));
    // A file that could not be loaded has no tests, but is a failure.
    const failed = results.numFailedTests + results.numRuntimeErrorTestSuites;
    return { passed: results.numPassedTests, failed };
  } catch {
    return { passed: 0, failed: 0 };
  }
}

/** Prints the slowest test files. */
function printSlowest() {
  let results;
  try {
    results = JSON.parse(readFileSync(RESULTS, 'utf8')).testResults;
  } catch {
    return;
  }
  const files = results
    .map(({ name, startTime, endTime }) => ({
      file: relative('.', name),
      seconds: (endTime - startTime) / 1_000,
    }))
    .sort((a, b) => b.seconds - a.seconds);
  console.log(
    `\nThe ${Math.min(SHOWN, files.length)} slowest test files, in seconds (a file that runs on both databases is listed twice):`,
  );
  for (const { file, seconds } of files.slice(0, SHOWN))
    console.log(`${seconds.toFixed(1).padStart(7)}  ${file}`);
}

mkdirSync('.cache', { recursive: true });
rmSync(RESULTS, { force: true });
const checked = await run('check');
const tested = await run('jest', '--', '--json', `--outputFile=${RESULTS}`);
const { passed, failed } = counts();
printSlowest();

const problems = [];
if (!checked) problems.push('npm run check failed, see above');
if (!tested && failed === 0) problems.push('jest failed, see above');
if (passed + failed === 0) problems.push('no test was run');
for (const problem of problems) console.error(problem);
process.exitCode = problems.length > 0 || failed > 0 ? 1 : 0;
console.log(`${passed} passed, ${failed} failed`);
