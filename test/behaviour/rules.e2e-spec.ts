import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

const CHECK = join(__dirname, '../../scripts/check-rules.mjs');

describe('the rules of the architecture', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'control-plane-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  function write(files: Record<string, string>): void {
    for (const [name, content] of Object.entries(files)) {
      mkdirSync(dirname(join(folder, name)), { recursive: true });
      writeFileSync(join(folder, name), content);
    }
  }

  function check(): { code: number | null; problems: string[] } {
    const { status, stderr } = spawnSync(process.execPath, [CHECK], {
      cwd: folder,
      encoding: 'utf8',
    });
    return { code: status, problems: stderr.split('\n').filter((line) => line !== '') };
  }

  it.each([
    ['src/agents/a.ts', '// Tries anew.', '"anew": write: again'],
    ['src/agents/a.ts', 'const admitPassedOver = 1;', '"PassedOver": write: missed, skipped'],
    [
      'src/agents/a.ts',
      '/**\n * Who hung up is not answered. */',
      '"Who hung": write: a caller that, an agent that',
    ],
    [
      'test/slow/a.e2e-spec.ts',
      'it("asks\n\nwhoever serves")',
      '"whoever": write: the caller, a client, anyone who',
    ],
    ['docs/extending.md', 'It is at\nthe most: at the most 5.', '"at the most": write: at most'],
    ['migrations/1-a.ts', '// so many rows', '"so many": write: the number: n tasks, limit bytes'],
    ['README.md', 'Tokens are withdrawn.', '"withdrawn": write: revoke'],
  ])('name the word to use instead in %s: %j', (file, content, problem) => {
    write({ [file]: content });
    const line = content.split('\n').length;
    const expected = file.startsWith('docs') || content.includes('Who hung') ? 2 : line;
    expect(check()).toEqual({ code: 1, problems: [`${file}:${expected}: ${problem}`] });
  });

  it.each([
    ['src/a.ts', `const ACTION = 'operator-token.withdraw'; proof.withdraw();`],
    ['docs/architecture.md', 'Who are you, and how often may you?\n\n- `quota`: who asks?'],
    ['src/a.ts', 'const upload = putOut; // hearsay, amendment'],
    ['CHANGELOG.md', 'Whoever asks anew.'],
  ])('let other text in %s be: %j', (file, content) => {
    write({ [file]: content });
    expect(check()).toEqual({ code: 0, problems: [] });
  });

  it('keep the database behind its folder', () => {
    const statement = 'if (tx.dialect.concurrent || this.database instanceof PostgresDatabase) return;';
    write({
      'src/database/a.ts': statement,
      'src/leases/a.ts': `\n${statement} // dialect.concurrent`,
      'src/leases/b.ts': '// dialect.concurrent is false on SQLite',
    });
    const { code, problems } = check();
    expect(code).toBe(1);
    expect(problems).toEqual([
      expect.stringMatching(/^src\/leases\/a\.ts:2: "dialect\.concurrent": only src\/database knows/),
      expect.stringMatching(/^src\/leases\/a\.ts:2: "instanceof PostgresDatabase": only src\/database knows/),
    ]);
  });

  it('keep SQL in files of queries', () => {
    const statement = "const found = tx.rows('SELECT id FROM agents');";
    write({
      'src/agents/agents.service.ts': statement,
      'src/agents/agents.queries.ts': statement,
      'src/database/a.ts': "tx.run('DELETE FROM quota_buckets')",
    });
    expect(check()).toEqual({
      code: 1,
      problems: [
        'src/agents/agents.service.ts:1: "SELECT": SQL stands in x.queries.ts, one operation a function',
      ],
    });
  });
});
