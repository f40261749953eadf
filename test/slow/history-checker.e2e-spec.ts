import type { Json } from '../helpers/api';
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
  // In force for the third lease and no longer; that of the target is there to the end.
  sent(12, 51, 'limit', { kind: 'dns', target: null, limit: 3 }),
  ended(12, 55, { windows: [] }),
  sent(13, 100, 'limit', { kind: 'dns', target: null, limit: null }),
  ended(13, 110, { windows: [] }),
  sent(14, 1_511, 'limit', { kind: 'dns', target: 'a.example', limit: 2 }),
  ended(14, 1_515, { windows: [] }),
];

const T0 = 1_767_225_600_000;

const TABLES: Tables = {
  tasks: [task(1, 'completed', 1), task(2, 'open', 1), task(3, 'cancelled', 1), task(4, 'open', 0)],
  places: [{ task_id: 4, place: 'queued' }],
  leases: [
    {
      ...{ ...lease(1, 1, 7, 1, 'completed'), ...reported(1) },
      ...{ granted_at: T0, deadline_at: T0 + 2_085, ended_at: T0 + 1_505 },
    },
    {
      ...{ ...lease(2, 2, 7, 1, 'expired'), ...reported(2) },
      ...{ granted_at: T0, deadline_at: T0 + 1_000, ended_at: T0 + 1_100 },
    },
    { ...lease(3, 3, 8, 1, 'revoked'), granted_at: T0 + 20, deadline_at: T0 + 1_020, ended_at: T0 + 1_545 },
    { ...lease(4, 2, 8, 2, 'active'), granted_at: T0 + 1_525, deadline_at: T0 + 2_565 },
  ],
  metrics: [{ id: 5, agent_id: 7 }],
  windows: [{ scope: 'target', kind: 'dns', target: 'a.example', slots: 2, leased: 1 }],
  counts: [{ kind: 'dns', scheduled: 0, queued: 1, leased: 1, completed: 1, cancelled: 1, dead: 0 }],
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

function task(id: number, state: string, attempts: number) {
  return { id, kind: 'dns', target: 'a.example', state, attempts, max_attempts: 5 };
}

function lease(id: number, task_id: number, agent_id: number, attempt: number, state: string) {
  const ended_at: number | null = null;
  return { id, task_id, agent_id, attempt, state, ended_at, report: null, observations: null };
}

function reported(id: number) {
  return { report: 'completed', observations: JSON.stringify(report(id).observations) };
}

interface Run {
  history: Entry[];
  tables: Tables;
}

const answer = (run: Run, id: number): Json =>
  run.history.find((entry) => entry.type === 'ended' && entry.id === id);
const request = (run: Run, id: number): Json =>
  run.history.find((entry) => entry.type === 'sent' && entry.id === id);
const row = (rows: { id: number }[], id: number): Json => rows.find((one) => one.id === id);

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
    (run) => Object.assign(row(run.tables.leases, 1), { report: null, observations: null }),
    /^lease 1: its report as completed was acknowledged, the database has completed, reported as null$/,
  ],
  [
    'the stored result is not the acknowledged one',
    (run) => {
      row(run.tables.leases, 1).observations = '[]';
    },
    /^lease 1: the result that was acknowledged is not the one stored$/,
  ],
  [
    'what was reported too late is lost',
    (run) => Object.assign(row(run.tables.leases, 2), { report: null, observations: null }),
    /^lease 2: its late report is lost$/,
  ],
  [
    'the stored late report is another one',
    (run) => {
      row(run.tables.leases, 2).observations = '[]';
    },
    /^lease 2: the late report is not the one stored$/,
  ],
  [
    'a completed task is queued again',
    (run) => {
      row(run.tables.tasks, 1).state = 'open';
    },
    /^lease 1: its task was acknowledged as completed and is open$/,
  ],
  [
    'a report of a superseded holder is acknowledged',
    (run) => {
      answer(run, 6).body = { acknowledged: 2 };
    },
    /^lease 2: its report as completed was acknowledged, the database has expired, reported as completed$/,
  ],
  [
    'a report is rejected and counts',
    (run) => {
      row(run.tables.leases, 2).state = 'completed';
    },
    /^lease 2: its report was rejected as expired, the database has completed$/,
  ],
  [
    'a task has two final results',
    (run) => {
      row(run.tables.leases, 2).state = 'completed';
      row(run.tables.leases, 4).state = 'completed';
      Object.assign(row(run.tables.leases, 4), reported(4));
    },
    /^task 2: open with 2 final results and 2 completed leases$/,
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
      row(run.tables.tasks, 3).state = 'open';
    },
    /^task 3: its cancel was acknowledged and it is open$/,
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
      row(run.tables.tasks, 2).attempts = 0;
    },
    /^task 2: 0 attempts of 5, 1 leases that ended$/,
  ],
  [
    'a task is queued while it is leased',
    (run) => run.tables.places.push({ task_id: 2, place: 'queued' }),
    /^task 2: open, and queued and leased$/,
  ],
  ['an open task is nowhere', (run) => run.tables.places.pop(), /^task 4: open, and nowhere$/],
  [
    'a finished task is still to be claimed',
    (run) => run.tables.places.push({ task_id: 1, place: 'queued' }),
    /^task 1: completed, and queued$/,
  ],
  [
    'a window counts wrong',
    (run) => {
      (run.tables.windows[0] as { leased: number }).leased = 0;
    },
    /^window target dns a\.example: says 0 leased, the tasks are 1$/,
  ],
  [
    'a depth counts wrong',
    (run) => {
      (run.tables.counts[0] as { completed: number }).completed = 2;
    },
    /^count of dns completed: says 2, the tasks are 1$/,
  ],
  [
    'a limit that was acknowledged is not there',
    (run) => run.tables.windows.pop(),
    /^window target dns a\.example: its limit 2 was acknowledged and is null$/,
  ],
  [
    'a limit that was lifted is there',
    (run) => run.tables.windows.push({ scope: 'kind', kind: 'dns', target: '', slots: 3, leased: 1 }),
    /^window kind dns: its limit null was acknowledged and is 3$/,
  ],
  [
    'more is granted than a limit allows',
    (run) => {
      request(run, 12).request.limit = 2;
    },
    /^window kind dns: 1 leases were granted beside 2, its limit is 2$/,
  ],
  [
    'one claim is granted more than a limit allows',
    (run) => {
      Object.assign(request(run, 12), { at: 31 });
      Object.assign(answer(run, 12), { at: 39 });
      request(run, 12).request.limit = 1;
    },
    /^window kind dns: 2 leases were granted beside 0, its limit is 1$/,
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
    run.history.push(sent(15, 1_700, 'report', { agent_id: 8, completed: [report(4)], cancelled: [] }));
    Object.assign(row(run.tables.tasks, 2), { state: 'completed', attempts: 2 });
    Object.assign(row(run.tables.leases, 4), {
      ...{ ...reported(4), state: 'completed', ended_at: T0 + 1_700 },
    });
    for (const window of run.tables.windows) window.leased = 0;
    Object.assign(run.tables.counts[0] as object, { completed: 2, leased: 0 });
    // A limit may have been set, or not.
    run.history.push(sent(16, 1_710, 'limit', { kind: 'dns', target: 'a.example', limit: 9 }));
    expect(violationsOf(run.history, run.tables)).toEqual([]);
  });

  it('holds nothing that was granted before a limit, or while it changed, against it', () => {
    const run = structuredClone({ history: HISTORY, tables: TABLES });
    // Set while the third lease was granted; two were live already.
    Object.assign(request(run, 12), { at: 61 });
    Object.assign(answer(run, 12), { at: 65 });
    request(run, 12).request.limit = 1;
    expect(violationsOf(run.history, run.tables)).toEqual([]);
  });
});
