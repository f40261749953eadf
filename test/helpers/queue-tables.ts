import { type Dialect, postgresDialect, sqliteDialect } from '../../src/database/dialect';
import type { Statements, Transaction } from '../../src/database/statements';
import { TASK_STATES, type TaskState } from '../../src/queue/task.entity';
import { selectTasks, tasksOf } from '../../src/tasks/tasks.queries';
import { onPostgres } from './harness';

/** What holds the queue, but for agents and the lanes that kinds share. */
const QUEUE_TABLES = [
  'idempotency_keys',
  'ready',
  'scheduled',
  'task_expiries',
  'unique_keys',
  'finished_tasks',
  'task_counts',
  'task_count_deltas',
  'leases',
  'tasks',
  'concurrency_windows',
  'concurrency_window_changes',
];

/** Where an open task is: in exactly one of these. */
const PLACES = `SELECT task_id FROM ready UNION ALL SELECT task_id FROM scheduled
  UNION ALL SELECT task_id FROM leases WHERE state = 'active'`;

/** The dialect of the database that the tests run on. */
export const DIALECT = onPostgres ? postgresDialect : sqliteDialect;

const allTasks = (dialect: Dialect): string => tasksOf(dialect, 'SELECT id FROM tasks');

/** A query: all tasks, with what is known of them; their states are those that the API shows. */
export const ALL_TASKS = allTasks(DIALECT);

const countOf = (state: string) => `CASE WHEN state = '${state}' THEN -1 ELSE 0 END AS ${state}`;

/** That no job is about to update the windows that inherit the bounds of every target of a kind. */
const isUpToDate = (kind: string) => `NOT EXISTS (SELECT 1 FROM concurrency_windows e
  WHERE e.scope = 'every_target' AND e.kind = ${kind} AND e.moved_through IS NOT NULL)`;

/** What must hold whatever the reference says: each row that this finds is a broken promise. */
const invariants = (tasks: string): string => `
  SELECT 'two live leases for a task' AS broken, 'task ' || task_id AS facts
  FROM leases WHERE state = 'active' GROUP BY task_id HAVING count(*) > 1
UNION ALL
  SELECT 'two final results for a task', 'task ' || task_id
  FROM leases WHERE state = 'completed' GROUP BY task_id HAVING count(*) > 1
UNION ALL
  SELECT 'completed without a final result', 'task ' || id FROM tasks t
  WHERE (state = 'completed') <> EXISTS (
    SELECT 1 FROM leases l WHERE l.task_id = t.id AND l.state = 'completed' AND l.report = 'completed')
UNION ALL
  SELECT 'an open task that is not in one place, or a finished one that is', 'task ' || t.id FROM tasks t
  WHERE (SELECT count(*) FROM (${PLACES}) AS p WHERE p.task_id = t.id) <> CASE WHEN t.state = 'open' THEN 1 ELSE 0 END
UNION ALL
  SELECT 'a place without a task', 'task ' || p.task_id FROM (${PLACES}) AS p
  WHERE NOT EXISTS (SELECT 1 FROM tasks t WHERE t.id = p.task_id)
UNION ALL
  SELECT 'a task in a lane that is not its own', 'task ' || t.id FROM ready r
  JOIN tasks t ON t.id = r.task_id LEFT JOIN lanes l ON l.id = r.lane_id
  WHERE l.id IS NULL OR l.kind <> t.kind OR r.kind <> t.kind OR l.target NOT IN ('', t.target) OR r.rank <> -t.priority
    OR coalesce(r.not_after, -1) <> coalesce(t.not_after, -1)
    OR (l.target = '' AND ${isUpToDate('t.kind')} AND EXISTS (SELECT 1 FROM concurrency_windows w
      WHERE w.scope = 'target' AND w.kind = t.kind AND w.target = t.target AND w.moved_through IS NULL))
    OR (l.target = '' AND EXISTS (SELECT 1 FROM concurrency_windows e
      WHERE e.scope = 'every_target' AND e.kind = t.kind AND e.moved_through IS NULL))
UNION ALL
  SELECT 'a lane with a wrong count or head', 'lane ' || l.id FROM lanes l WHERE l.target <> '' AND (
    l.queued <> (SELECT count(*) FROM ready r WHERE r.lane_id = l.id)
    OR coalesce(l.head_id, 0) <> coalesce((SELECT r.task_id FROM ready r WHERE r.lane_id = l.id ORDER BY rank, task_id LIMIT 1), 0))
UNION ALL
  SELECT 'a lane that is closed and has room, or the reverse', 'lane ' || l.id FROM lanes l
  LEFT JOIN concurrency_windows w ON w.scope = 'target' AND w.kind = l.kind AND w.target = l.target
  WHERE l.target <> '' AND ${isUpToDate('l.kind')} AND l.is_open <> CASE WHEN l.opens_at IS NULL
    AND (w.id IS NULL OR w.slots IS NULL OR w.leased < w.slots) THEN 1 ELSE 0 END
UNION ALL
  SELECT 'a lane that waits too long for its next start', 'lane ' || l.id FROM lanes l
  LEFT JOIN concurrency_windows w ON w.scope = 'target' AND w.kind = l.kind AND w.target = l.target
  WHERE l.opens_at IS NOT NULL AND ${isUpToDate('l.kind')}
    AND (w.rate IS NULL OR l.opens_at > coalesce(w.hold_until, 0) AND l.opens_at > w.last_start_us / 1000 + 1000000 / w.rate + 1)
UNION ALL
  SELECT 'a wrong time to end', 'task ' || id FROM (
    SELECT task_id AS id, 1 AS n FROM task_expiries
    UNION ALL SELECT id, -1 FROM (${tasks}) AS v
      WHERE state IN ('scheduled', 'queued') AND not_after IS NOT NULL) AS e
  GROUP BY id HAVING sum(n) <> 0
UNION ALL
  SELECT 'a key that no unfinished task has, or the reverse', unique_key FROM (
    SELECT unique_key, task_id, 1 AS n FROM unique_keys
    UNION ALL SELECT unique_key, id, -1 FROM tasks WHERE state = 'open' AND unique_key IS NOT NULL) AS k
  GROUP BY unique_key, task_id HAVING sum(n) <> 0
UNION ALL
  SELECT 'a finished task that is not listed, or the reverse', 'task ' || id FROM (
    SELECT kind, state, finished_at, task_id AS id, 1 AS n FROM finished_tasks
    UNION ALL SELECT kind, state, finished_at, id, -1 FROM tasks WHERE state <> 'open') AS f
  GROUP BY kind, state, finished_at, id HAVING sum(n) <> 0
UNION ALL
  SELECT 'a lease that expired early', 'lease ' || id FROM leases WHERE state = 'expired' AND ended_at < deadline_at
UNION ALL
  -- An instant is that at which a unit began: one that waited for a lock may grant a lease "before" the last one ended.
  SELECT 'a later attempt with a smaller lease', 'lease ' || b.id FROM leases a JOIN leases b ON b.task_id = a.task_id
  WHERE b.granted_at > a.ended_at AND b.id < a.id
UNION ALL
  SELECT 'more attempts than allowed', 'task ' || id FROM (${tasks}) AS v
  WHERE attempts > max_attempts OR attempts < 0
UNION ALL
  SELECT 'a wrong depth', kind || ' ' || ${TASK_STATES.map((state) => `sum(${state})`).join(` || ' ' || `)} FROM (
    SELECT kind, ${TASK_STATES.join(', ')} FROM task_counts
    UNION ALL SELECT kind, ${TASK_STATES.join(', ')} FROM task_count_deltas
    UNION ALL SELECT kind, ${TASK_STATES.map(countOf).join(', ')} FROM (${tasks}) AS s) AS d
  GROUP BY kind HAVING ${TASK_STATES.map((state) => `sum(${state}) <> 0`).join(' OR ')}
UNION ALL
  SELECT 'a wrong window', w.scope || '/' || w.kind || '/' || w.target || ' ' || w.leased FROM concurrency_windows w
  WHERE w.scope <> 'every_target' AND w.leased <> (SELECT count(*) FROM leases l JOIN tasks t ON t.id = l.task_id
    WHERE l.state = 'active' AND w.kind IN ('', t.kind) AND w.target IN ('', t.target))`;

/** Empties the queue; agents, ids that were given, and the lanes that kinds share stay: the service remembers them. */
export async function emptyQueue(tx: Transaction): Promise<void> {
  for (const table of QUEUE_TABLES) await tx.run(`DELETE FROM ${table}`);
  await tx.run(`DELETE FROM lanes WHERE target <> ''`);
}

/** What reads a database; its dialect is that of the test's own if it does not say. */
type Reader = Pick<Statements, 'rows'> & Partial<Pick<Statements, 'dialect'>>;

/** What does not hold of what is stored: empty if the tables agree with each other. In one statement, so of one instant. */
export async function brokenPromises(reader: Reader): Promise<string[]> {
  const found = await reader.rows<{ broken: string; facts: string }>(
    invariants(allTasks(reader.dialect ?? DIALECT)),
  );
  return found.map(({ broken, facts }) => `${broken}: ${facts}`);
}

/** The states of tasks, as the API shows them, in the order of the ids; of one that there is not, undefined. */
export async function taskStates(
  statements: Statements,
  ids: readonly number[],
): Promise<(TaskState | undefined)[]> {
  const states = new Map((await selectTasks(statements, ids)).map(({ id, state }) => [id, state]));
  return ids.map((id) => states.get(id));
}

const BEYOND = 'NEW.leased > OLD.leased AND NEW.leased > NEW.slots';

/**
 * Has a database note whatever takes a slot that a window does not have: a window that is over its limit because that was
 * lowered is none, until it takes one more. {@link grantsBeyondLimits} says what was noted.
 */
export async function watchLimits(
  rows: (sql: string) => Promise<unknown>,
  { name }: Dialect = postgresDialect,
): Promise<void> {
  await rows('CREATE TABLE beyond_limits (kind text, target text, slots bigint, leased bigint)');
  const note = 'INSERT INTO beyond_limits VALUES (NEW.kind, NEW.target, NEW.slots, NEW.leased)';
  if (name === 'sqlite') {
    await rows(
      `CREATE TRIGGER note_beyond_limits AFTER UPDATE ON concurrency_windows WHEN ${BEYOND} BEGIN ${note}; END`,
    );
    return;
  }
  await rows(
    `CREATE FUNCTION note_beyond_limits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ${note}; RETURN NULL; END $$`,
  );
  await rows(
    `CREATE TRIGGER note_beyond_limits AFTER UPDATE ON concurrency_windows FOR EACH ROW WHEN (${BEYOND})
     EXECUTE FUNCTION note_beyond_limits()`,
  );
}

/** The slots that were taken beyond a limit since {@link watchLimits}. */
export async function grantsBeyondLimits(
  rows: (sql: string) => Promise<{ kind: string; target: string; slots: number; leased: number }[]>,
): Promise<string[]> {
  const noted = await rows('SELECT kind, target, slots, leased FROM beyond_limits');
  return noted.map(
    ({ kind, target, slots, leased }) =>
      `a slot beyond a limit: window ${kind}/${target}, ${leased} of ${slots}`,
  );
}
