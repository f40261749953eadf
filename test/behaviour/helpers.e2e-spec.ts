import { endAll, Program } from '../helpers/processes';
import { until } from '../helpers/until';

const node = (script: string): Program => Program.spawn(process.execPath, ['--eval', script]);

describe('a test that waits', () => {
  it('goes on with what it saw, as soon as that is so', async () => {
    let looks = 0;
    expect(await until('the third look', () => ++looks, { isDone: (seen) => seen === 3 })).toBe(3);
    expect(await until('anything', () => looks)).toBe(3);
    expect(looks).toBe(3);
  });

  it.each([
    ['is not so', () => ({ state: 'queued' }), /^not within 50 ms: it is leased; .*'queued'/],
    ['does not answer', () => new Promise<object>(() => undefined), /^not within 50 ms: it is leased; /],
    ['throws', () => Promise.reject<object>(new Error('revoked')), /^revoked$/],
  ])('fails with what it waited for, if that %s', async (_what, look, said) => {
    await expect(until('it is leased', look, { isDone: () => false, withinMs: 50 })).rejects.toThrow(said);
  });
});

describe('a process of a test', () => {
  afterEach(endAll);

  it('is waited for until it has written something, also if it ends then', async () => {
    const program = node(`console.log('first'); console.error('second')`);
    expect(await program.printed(/first/)).toBe('first\n');
    expect(await program.printed(/second/, { to: 'errors' })).toBe('second\n');
    expect(await program.result()).toEqual({ code: 0, stdout: 'first\n', stderr: 'second\n' });
  });

  it('is waited for no longer when it has ended without', async () => {
    await expect(node(`console.error('refused'); process.exitCode = 3`).printed(/first/)).rejects.toThrow(
      /ended: refused/,
    );
  });

  it('is waited for no longer when there is no such program', async () => {
    const program = Program.spawn('/nowhere/to-be-found', []);
    await expect(program.printed(/first/)).rejects.toThrow(/ended: Error: spawn .* ENOENT/);
    expect(await program.ended()).not.toBe(0);
  });

  it('is waited for only so long', async () => {
    const program = node('setInterval(() => {}, 1_000)');
    await expect(program.printed(/first/, { withinMs: 50 })).rejects.toThrow(/^not within 50 ms: .*first/);
    expect(program.runs).toBe(true);
    expect(await program.end('SIGKILL')).toBeNull();
  });

  it('has read what it was given, or reads on', async () => {
    const echo = 'process.stdin.pipe(process.stdout)';
    const given = Program.spawn(process.execPath, ['--eval', echo], { input: 'all' });
    expect(await given.result()).toEqual({ code: 0, stdout: 'all', stderr: '' });
    const open = Program.spawn(process.execPath, ['--eval', echo], { input: null });
    open.child.stdin?.write('some');
    await open.printed(/some/);
    expect(open.runs).toBe(true);
  });

  it('is ended with what it has started, if it leads a group', async () => {
    const script = `const on = 'setTimeout(() => {}, 60_000)';
      require('node:child_process').spawn(process.execPath, ['--eval', "console.log('started');" + on], { stdio: 'inherit' });
      eval(on);`;
    const leader = Program.spawn(process.execPath, ['--eval', script], { leadsGroup: true });
    await leader.printed(/started/);
    await endAll();
    expect(leader.runs).toBe(false);
    await until('nobody has its output open', () => leader.child.stdout?.closed);
  });
});
