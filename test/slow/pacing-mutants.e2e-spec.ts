import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { endAll, Program } from '../helpers/processes';
import { type Change, mutant } from '../helpers/replicas';

const ROOT = join(__dirname, '../..');
/** For machines with much else to do. */
const PATIENCE_MS = 180_000;

/** The program without one of the things that polite rates depend on, and the conformance test that tells. */
interface Mutant {
  readonly without: string;
  readonly changes: readonly Change[];
  readonly file: 'adaptive' | 'pacing' | 'rates';
  /** The beginning of its name. */
  readonly test: string;
}

// Without the lock on a window: mutants.e2e-spec.ts; it takes two replicas to tell.
const MUTANTS: readonly Mutant[] = [
  {
    without: 'epochs: every outcome counts for the next decision',
    changes: [['concurrency/pacing.js', 'leaseId > state.epochLeaseId', 'true']],
    file: 'pacing',
    test: 'is cut at most once',
  },
  {
    without: 'the bound on leases by what was heard of the target',
    changes: [
      [
        'concurrency/pacing.js',
        'return Math.min(deadLevel > 0 ? 1 : Math.max(exports.MIN_LEASED, needed), limit ??',
        'return Math.min(limit ??',
      ],
    ],
    file: 'adaptive',
    test: 'begins with few leases at once',
  },
  {
    without: 'asking whose fault failures are',
    changes: [
      [
        'concurrency/pacing.js',
        'return others > 0 && areFew(state.agents.filter(isBroken), state.agents) ? well : present',
        'return present',
      ],
    ],
    file: 'pacing',
    test: 'is not cut for an agent that only fails',
  },
  {
    without: 'telling agents when to start',
    changes: [
      ['leases/claims.service.js', '{ ...lease, start_in_ms: Math.max(0, startInMs - passedMs) }', 'lease'],
    ],
    file: 'rates',
    test: 'is told by start_in_ms',
  },
  {
    without: 'remembering the last start of a window',
    changes: [['concurrency/windows.js', 'window.row.last_start_us = starts.last;', ';']],
    file: 'pacing',
    test: 'bound the starts of every second',
  },
  {
    without: 'counting the starts of everything and of kinds',
    changes: [['concurrency/windows.js', 'window.row.recent_starts = starts.text;', ';']],
    file: 'pacing',
    test: 'bound the starts of every second',
  },
  {
    without: 'bounds of every target for one that comes later',
    changes: [['concurrency/windows.js', 'if (missing.size === 0)', 'if (missing.size >= 0)']],
    file: 'rates',
    test: 'hold for each target alone',
  },
];

describe('the program', () => {
  let folder: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterAll(async () => {
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  });

  /** Runs conformance tests against a build with pieces changed. @returns how each ended, by its name */
  async function run(
    name: string,
    changes: readonly Change[],
    files: readonly string[],
    tests: readonly string[],
  ): Promise<Map<string, string>> {
    const home = dirname(dirname(mutant(folder, name, changes)));
    for (const part of ['test', 'scripts', 'jest.config.cjs', 'tsconfig.json'])
      cpSync(join(ROOT, part), join(home, part), { recursive: true });
    // Folders of another project of jest.
    for (const empty of ['src', 'bench']) mkdirSync(join(home, empty));
    const answer = join(home, 'answer.json');
    const program = Program.spawn(
      process.execPath,
      [
        ...['--experimental-vm-modules', '--disable-warning=ExperimentalWarning'],
        ...[join(ROOT, 'node_modules/jest/bin/jest.js'), '--selectProjects', 'conformance', '--runInBand'],
        ...['--testPathPatterns', `conformance/(${files.join('|')})\\.`],
        ...['--testNamePattern', tests.join('|'), '--json', '--outputFile', answer],
      ],
      { cwd: home },
    );
    await program.ended();
    const { testResults } = JSON.parse(readFileSync(answer, 'utf8'));
    const ended = testResults.flatMap((one: { assertionResults: { title: string; status: string }[] }) =>
      one.assertionResults.filter(({ title }) => tests.some((test) => title.startsWith(test))),
    );
    return new Map(ended.map(({ title, status }: { title: string; status: string }) => [title, status]));
  }

  const unique = (texts: readonly string[]): string[] => [...new Set(texts)];

  it(
    'passes each of these tests as it is',
    async () => {
      const tests = unique(MUTANTS.map(({ test }) => test));
      const ended = await run('as-it-is', [], unique(MUTANTS.map(({ file }) => file)), tests);
      for (const test of tests)
        expect([...ended.keys()].filter((title) => title.startsWith(test))).not.toEqual([]);
      expect([...ended].filter(([, status]) => status !== 'passed')).toEqual([]);
    },
    PATIENCE_MS,
  );

  it.each(MUTANTS)(
    'would be found out without $without',
    async ({ without, changes, file, test }) => {
      const ended = await run(without.replaceAll(/\W+/g, '-').slice(0, 40), changes, [file], [test]);
      expect([...ended.values()]).toContain('failed');
    },
    PATIENCE_MS,
  );
});
