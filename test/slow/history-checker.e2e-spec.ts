import { type Ended, type Entry, type Sent, type Tables, violationsOf } from '../helpers/history-checker';

/** A run with nothing wrong: tasks 1 to 4 were enqueued; 1 was completed, 2 expired and is held again, 3 cancelled. */
const HISTORY: Entry[] = [
  sent(1, 0, 'enqueue', { tasks: [] }, 'key-1'),
  { ...ended(1, 10), status: null, body: null },
  sent(2, 20, 'enqueue', { tasks: [] }, 'key-1'),
  ended(2, 30, { tasks: [{ id: 1 }, { id: 2 }, { id: 3 }, { id: 4 }] }),
  sent(3, 40, 'claim', { agent_id: 7, capacities: { dns: 2 } }, 'key-3'),
  ended(3, 50, { leases: [grant(1, 1), grant(2, 2)] }),
  sent(4, 60, 'claim', { agent_id: 8, capacities: { dns: 1 } }),
  ended(4, 70, { leases: [grant(3, 3)] }),
  sent(5, 80, 'extend', { agent_id: 7, lease_ids: [1], extend_by_ms: 2_000 }),
  ended(5, 90, { outcomes: [{ lease_id: 1, new_deadline_ms: 2_000 }], revoked: [] }),
  sent(6, 1_500, 'report', { agent_id: 7, completed: [report(1), report(2)], cancelled: [] }),
  ended(6, 1_510, { acknowledged: 1, rejected: [{ lease_id: 2, reason: 'expired' }] }),
  sent(7, 1_520, 'claim', { agent_id: 8, capacities: { dns: 1 } }),
  ended(7, 1_530, { leases: [grant(4, 2)] }),
  sent(8, 1_540, 'cancel', { task_id: 3 }),
  ended(8, 1_550, { state: 'cancelled' }),
  sent(9, 1_560, 'extend', { agent_id: 8, lease_ids: [3, 4], extend_by_ms: 1_000 }),
  ended(9, 1_570, { outcomes: [{ lease_id: 4, new_deadline_ms: 1_000 }], revoked: [3] }),
  sent(10, 1_580, 'metrics', { agent_id: 7 }),
  ended(10, 1_590, { accepted: true, id: '5' }),
  sent(11, 1_600, 'cancel', { task_id: 4 }),
  { ...ended(11, 1_610, { error: 'ERR_UNAVAILABLE' }), status: 503, retryAfter: '1' },
];

const T0 = 1_767_225_600_000;

const TABLES: Tables = {
  tasks: [task(1, 'completed', 1), task(2, 'leased', 2, 4), task(3, 'cancelled', 1), task(4, 'queued', 0)],
  leases: [
    { ...lease(1, 1, 7, 1, 'completed'), granted_at: T0, deadline_at: T0 + 2_085, ended_at: T0 + 1_505 },
    { ...lease(2, 2, 7, 1, 'expired'), granted_at: T0, deadline_at: T0 + 1_000, ended_at: T0 + 1_100 },
    { ...lease(3, 3, 8, 1, 'revoked'), granted_at: T0 + 20, deadline_at: T0 + 1_020, ended_at: T0 + 1_545 },
    { ...lease(4, 2, 8, 2, 'active'), granted_at: T0 + 1_525, deadline_at: T0 + 2_565 },
  ],
  results: [result(1, 1, 'final'), result(2, 2, 'late')],
  metrics: [{ id: 5, agent_id: 7 }],
  windows: [
    { scope: 'global', kind: '', target: '', ceiling: null, ready: 1, leased: 1, waiting: 0 },
    { scope: 'kind', kind: 'dns', target: '', ceiling: 3, ready: 1, leased: 1, waiting: 0 },
    { scope: 'target', kind: 'dns', target: 'a.example', ceiling: null, ready: 1, leased: 1, waiting: 0 },
  ],
  counts: [
    { kind: 'dns', state: 'completed', count: 1 },
    { kind: 'dns', state: 'leased', count: 1 },
    { kind: 'dns', state: 'cancelled', count: 1 },
    { kind: 'dns', state: 'queued', count: 1 },
    { kind: 'dns', state: 'dead', count: 0 },
  ],
};

function sent(id: number, at: number, op: Sent['op'], request: object, key?: string): Sent {
  return { type: 'sent', id, at, replica: 'a', op, key, request } as Sent;
}

function ended(id: number, at: number, body: unknown = {}): Ended {
  return { type: 'ended', id, at, status: 200, retryAfter: null, body };
}

function grant(lease_id: number, task_id: number) {
  return { lease_id, task_id, lease_until_ms: 1_000 };
}

function report(lease_id: number) {
  return { lease_id, observations: [{ name: 'value', value: `of ${lease_id}` }] };
}

function task(id: number, state: string, attempts: number, lease_id: number | null = null) {
  return { id, kind: 'dns', target: 'a.example', state, attempts, max_attempts: 5, lease_id };
}

function lease(id: number, task_id: number, agent_id: number, attempt: number, state: string) {
  return { id, task_id, agent_id, attempt, state, ended_at: null as number | null };
}

function result(task_id: number, lease_id: number, standing: string) {
  return {
    task_id,
    lease_id,
    standing,
    report: 'completed',
    observations: JSON.stringify(report(lease_id).observations),
  };
}

interface Run {
  history: Entry[];
  tables: Tables;
}

const answer = (run: Run, id: number): any =>
  run.history.find((entry) => entry.type === 'ended' && entry.id === id);
const request = (run: Run, id: number): any =>
  run.history.find((entry) => entry.type === 'sent' && entry.id === id);
const row = (rows: { id: number }[], id: number): any => rows.find((one) => one.id === id);

/** What may go wrong, and what the checker says of it. */
const WRONG: [string, (run: Run) => void, RegExp][] = [
  ['an enqueued task is lost', (run) => run.tables.tasks.pop(), /^task 4: acknowledged and lost$/],
  [
    'a repeated enqueue adds other tasks',
    (run) => {
      answer(run, 1).status = 201;
      answer(run, 1).body = { tasks: [{ id: 11 }] };
    },
    /^enqueue 2: another answer under the same key$/,
  ],
  ['an envelope is lost', (run) => run.tables.metrics.pop(), /^envelope 5: acknowledged and lost$/],
  ['a granted lease is lost', (run) => run.tables.leases.splice(2, 1), /^lease 3: granted and lost$/],
  [
    'a lease is granted to two agents',
    (run) => {
      answer(run, 4).body.leases = [grant(2, 2)];
    },
    /^lease 2: granted to agents 7 and 8$/,
  ],
  [
    'an acknowledged result is lost',
    (run) => run.tables.results.shift(),
    /^lease 1: its report as completed was acknowledged, the database has completed, undefined$/,
  ],
  [
    'the stored result is not the acknowledged one',
    (run) => {
      (run.tables.results[0] as { observations: string }).observations = '[]';
    },
    /^lease 1: the result that was acknowledged is not the one stored$/,
  ],
  [
    'a completed task is queued again',
    (run) => {
      row(run.tables.tasks, 1).state = 'queued';
    },
    /^lease 1: its task was acknowledged as completed and is queued$/,
  ],
  [
    'a report of a superseded holder is acknowledged',
    (run) => {
      answer(run, 6).body = { acknowledged: 2 };
    },
    /^lease 2: its report as completed was acknowledged, the database has expired, late$/,
  ],
  [
    'a report is rejected and counts',
    (run) => {
      row(run.tables.leases, 2).state = 'completed';
    },
    /^lease 2: its report was rejected as expired, the database has completed, late$/,
  ],
  [
    'a task has two final results',
    (run) => {
      row(run.tables.leases, 2).state = 'completed';
      row(run.tables.leases, 4).state = 'completed';
      run.tables.results.push(result(2, 4, 'final'));
      Object.assign(run.tables.results[1] as object, { standing: 'final' });
    },
    /^task 2: leased with 2 final results and 2 completed leases$/,
  ],
  [
    'a report is acknowledged in part only',
    (run) => {
      answer(run, 6).body.acknowledged = 0;
    },
    /^report 6: acknowledged 0 of 2$/,
  ],
  [
    'a cancelled task goes on',
    (run) => {
      row(run.tables.tasks, 3).state = 'waiting';
    },
    /^task 3: its cancel was acknowledged and it is waiting$/,
  ],
  [
    'a lease ends before its deadline as its holder knows it',
    (run) => {
      request(run, 6).at = 700;
      answer(run, 6).at = 710;
    },
    /^lease 2: ended 330 ms early$/,
  ],
  [
    'an extend finds a lease gone before its deadline',
    (run) => {
      answer(run, 5).body = { outcomes: [], revoked: [1] };
    },
    /^lease 1: ended 950 ms early$/,
  ],
  [
    'a lease expires before its deadline as the database knows it',
    (run) => {
      row(run.tables.leases, 2).ended_at = T0 + 999;
    },
    /^lease 2: expired before its deadline$/,
  ],
  [
    'a task is handed out while its lease is live',
    (run) => {
      request(run, 7).at = 600;
      answer(run, 7).at = 610;
    },
    /^task 2: leases 2 and 4 were live at once$/,
  ],
  [
    'a task has two live leases in the database',
    (run) => {
      row(run.tables.leases, 2).state = 'active';
    },
    /^task 2: 2 live leases$/,
  ],
  [
    'a lease begins before the one before has ended',
    (run) => {
      row(run.tables.leases, 2).ended_at = T0 + 1_900;
    },
    /^task 2: lease 4 began before 2 had ended$/,
  ],
  [
    'lease ids do not grow',
    (run) => {
      row(run.tables.leases, 2).attempt = 2;
      row(run.tables.leases, 4).attempt = 1;
    },
    /^task 2: lease 2 is its 1\., and says 2\.$/,
  ],
  [
    'an attempt is not counted',
    (run) => {
      row(run.tables.tasks, 2).attempts = 1;
    },
    /^task 2: 1 attempts of 5, 2 leases$/,
  ],
  [
    'a task is held by a lease that has ended',
    (run) => {
      row(run.tables.tasks, 2).lease_id = 2;
    },
    /^task 2: leased under lease 2, its live lease is 4$/,
  ],
  [
    'a window counts wrong',
    (run) => {
      (run.tables.windows[1] as { ready: number }).ready = 0;
    },
    /^window kind dns: says 0,1,0 \(ready, leased, waiting\), the tasks are 1,1,0$/,
  ],
  [
    'a depth counts wrong',
    (run) => {
      (run.tables.counts[0] as { count: number }).count = 2;
    },
    /^count of dns completed: says 2, the tasks are 1$/,
  ],
  [
    'a ceiling is exceeded at the end',
    (run) => {
      (run.tables.windows[2] as { ceiling: number }).ceiling = 1;
    },
    /^window target dns a\.example: 1 \+ 1 exceed its ceiling 1$/,
  ],
  [
    'a ceiling was exceeded in between',
    (run) => {
      (run.tables.windows[1] as { ceiling: number }).ceiling = 2;
    },
    /^window kind dns: 3 leases were live, its ceiling is 2$/,
  ],
  [
    'a server fails',
    (run) => {
      answer(run, 7).status = 500;
    },
    /^claim 7: answered 500 /,
  ],
  [
    'a server does not say when to come again',
    (run) => {
      answer(run, 11).retryAfter = null;
    },
    /^cancel 11: 503 without Retry-After$/,
  ],
  [
    'a token is refused',
    (run) => {
      answer(run, 7).status = 401;
    },
    /^claim 7: answered 401 /,
  ],
];

describe('the history checker', () => {
  it('finds nothing in a run with nothing wrong', () => {
    expect(violationsOf(HISTORY, TABLES)).toEqual([]);
  });

  it.each(WRONG)('says so where %s', (_, change, sentence) => {
    const run = structuredClone({ history: HISTORY, tables: TABLES });
    change(run);
    expect(violationsOf(run.history, run.tables)).toContainEqual(expect.stringMatching(sentence));
  });

  it('takes what a call that was not answered may have done for possible', () => {
    const run = structuredClone({ history: HISTORY, tables: TABLES });
    // The report that completed lease 4 was stored, and its answer was lost.
    run.history.push(sent(12, 1_700, 'report', { agent_id: 8, completed: [report(4)], cancelled: [] }));
    Object.assign(row(run.tables.tasks, 2), { state: 'completed', lease_id: null });
    Object.assign(row(run.tables.leases, 4), { state: 'completed', ended_at: T0 + 1_700 });
    run.tables.results.push(result(2, 4, 'final'));
    for (const window of run.tables.windows) window.leased = 0;
    run.tables.counts = run.tables.counts.map((count) => ({
      ...count,
      count: { completed: 2, leased: 0 }[count.state] ?? count.count,
    }));
    expect(violationsOf(run.history, run.tables)).toEqual([]);
  });
});
