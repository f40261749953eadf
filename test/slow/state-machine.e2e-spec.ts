import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SchedulerRegistry } from '@nestjs/schedule';
import fc from 'fast-check';
import { pino } from 'pino';
import { type AgentTransition, FleetService } from '../../src/agents/fleet.service';
import { RegistrationService } from '../../src/agents/registration.service';
import { type ControlPlane, createApp } from '../../src/app';
import { toTimestamp } from '../../src/clock';
import { ConcurrencyService } from '../../src/concurrency/concurrency.service';
import type { Statements } from '../../src/database/statements';
import type { AgentIdentity } from '../../src/http/control-plane-request';
import { HangUpSignal } from '../../src/http/hang-up';
import { ClaimsService } from '../../src/leases/claims.service';
import { type LeaseState, standingOf } from '../../src/leases/lease.entity';
import { LeasesService } from '../../src/leases/leases.service';
import { QueueMaintainer } from '../../src/queue/maintenance';
import { readSettings } from '../../src/settings';
import type { TaskDetail } from '../../src/tasks/tasks.dto';
import { TasksService } from '../../src/tasks/tasks.service';
import {
  ADMIN_TOKEN,
  databaseIn,
  identityOf,
  OPERATOR,
  onPostgres,
  removeDatabaseIn,
  serviceRuns,
  TestClock,
} from '../helpers/harness';
import { ALL_TASKS, brokenPromises, emptyQueue } from '../helpers/queue-tables';
import {
  type Answer,
  type LeaseRow,
  type NewTask,
  type Operation,
  ReferenceModel,
  type Report,
  type ResultRow,
  type Snapshot,
  type TaskRow,
  type Terms,
  windowName,
} from '../helpers/reference-model';

/** How many random histories are played; a longer search is asked for with CONTROL_PLANE_TEST_RUNS. */
const RUNS = Number(process.env.CONTROL_PLANE_TEST_RUNS ?? (onPostgres ? 20 : 200));
/** For each history beyond the usual number, so that a long search may take long. */
const TIMEOUT_MS = 60_000 + RUNS * 1_000;

const TERMS: Terms = {
  leaseMs: 10_000,
  lifetimeMs: 25_000,
  backoffMs: 1_000,
  backoffMaxMs: 3_000,
  outageMs: 5_000,
};
const UNKNOWN_ID = 999_999_999;

// What a history is made of. Tasks and leases are named by how many are newer than they; callers, by a place in the
// list of agents or as the holder of the lease that is asked about: so a step means something in any history.

const KINDS = ['dns', 'tcp'] as const;
type Kind = (typeof KINDS)[number];

/** How many places before the newest; 'unknown' is an id that nobody ever had. */
type Pick = number | 'unknown';
/** Among those that are live, or among all. */
type LeasePick = { of: 'live' | 'all'; back: Pick };
type Who = number | 'holder';

interface TaskPlan {
  kind: Kind;
  host: number;
  priority: number;
  runIn: number | null;
  notAfterIn: number | null;
  maxAttempts: number;
  uniqueKey: string | null;
}

type Call =
  | { step: 'enqueue'; tasks: TaskPlan[] }
  | { step: 'claim'; who: number; dns: number; tcp: number; key: string | null }
  | { step: 'extend'; who: Who; leases: LeasePick[]; byMs: number }
  | {
      step: 'report';
      who: Who;
      reports: { lease: LeasePick; as: 'completed' | 'cancelled'; outcome: Report['outcome'] | null }[];
    }
  | { step: 'cancel' | 'retry'; task: Pick }
  | { step: AgentTransition; who: number }
  | { step: 'limit'; kind: Kind | null; host: number | null; limit: number | null }
  | { step: 'reap' | 'tidy' };

type Step =
  | Call
  /** Time in which nobody sees the service run: more than 5 s are an outage. */
  | { step: 'gap'; ms: number }
  /** Time in which the service runs, though its reaper does not get to its work. */
  | { step: 'pass'; ms: number }
  /** Calls at once. */
  | { step: 'race'; calls: Call[] };

const who = fc.integer({ min: 0, max: 2 });
const holder = fc.oneof({ weight: 6, arbitrary: fc.constant<Who>('holder') }, { weight: 1, arbitrary: who });
const pick = fc.oneof(
  { weight: 20, arbitrary: fc.integer({ min: 0, max: 5 }) },
  { weight: 1, arbitrary: fc.constant<Pick>('unknown') },
);
const lease: fc.Arbitrary<LeasePick> = fc.record({ of: fc.constantFrom('live', 'live', 'all'), back: pick });
const mostly = <T, U>(usual: T, others: fc.Arbitrary<U>) =>
  fc.oneof({ weight: 3, arbitrary: fc.constant(usual) }, { weight: 1, arbitrary: others });

const task: fc.Arbitrary<TaskPlan> = fc.record({
  kind: fc.constantFrom(...KINDS),
  host: fc.integer({ min: 0, max: 1 }),
  priority: fc.integer({ min: -1, max: 1 }),
  runIn: mostly(null, fc.constantFrom(-1_000, 0, 2_000, 7_000)),
  notAfterIn: mostly(null, fc.constantFrom(900, 1_700, 6_000, 12_000, 30_000, -5)),
  maxAttempts: fc.constantFrom(1, 2, 2, 3, 3, 3),
  uniqueKey: mostly(null, fc.constantFrom('a', 'b')),
});

const calls: Record<string, { weight: number; arbitrary: fc.Arbitrary<Call> }> = {
  enqueue: {
    weight: 5,
    arbitrary: fc.record({
      step: fc.constant('enqueue' as const),
      tasks: fc.array(task, { minLength: 1, maxLength: 3 }),
    }),
  },
  claim: {
    weight: 7,
    arbitrary: fc.record({
      step: fc.constant('claim' as const),
      who,
      dns: fc.integer({ min: 0, max: 2 }),
      tcp: fc.integer({ min: 0, max: 2 }),
      key: mostly(null, fc.constantFrom('k', 'l')),
    }),
  },
  extend: {
    weight: 3,
    arbitrary: fc.record({
      step: fc.constant('extend' as const),
      who: holder,
      leases: fc.array(lease, { maxLength: 3 }),
      byMs: fc.constantFrom(0, 1, 4_000, 10_000, 99_000),
    }),
  },
  report: {
    weight: 6,
    arbitrary: fc.record({
      step: fc.constant('report' as const),
      who: holder,
      reports: fc.array(
        fc.record({
          lease,
          as: fc.constantFrom('completed' as const, 'cancelled' as const),
          outcome: mostly(null, fc.constantFrom('success' as const, 'timeout' as const, 'error' as const)),
        }),
        { maxLength: 2 },
      ),
    }),
  },
  cancel: { weight: 1, arbitrary: fc.record({ step: fc.constant('cancel' as const), task: pick }) },
  retry: { weight: 2, arbitrary: fc.record({ step: fc.constant('retry' as const), task: pick }) },
  change: {
    weight: 3,
    arbitrary: fc.record({
      step: fc.constantFrom(
        'disable' as const,
        'enable' as const,
        'enable' as const,
        'enable' as const,
        'drain' as const,
      ),
      who,
    }),
  },
  limit: {
    weight: 3,
    arbitrary: fc
      .record({
        step: fc.constant('limit' as const),
        kind: fc.option(fc.constantFrom(...KINDS)),
        host: fc.option(fc.integer({ min: 0, max: 1 })),
        limit: fc.option(fc.constantFrom(0, 1, 1, 2, 2, 3), { freq: 2 }),
      })
      .map((one) => (one.kind === null ? { ...one, host: null } : one)),
  },
  reap: { weight: 5, arbitrary: fc.record({ step: fc.constant('reap' as const) }) },
  tidy: { weight: 2, arbitrary: fc.record({ step: fc.constant('tidy' as const) }) },
};

const call = fc.oneof(...Object.values(calls));
const pass = fc.record({
  step: fc.constant('pass' as const),
  ms: fc.constantFrom(400, 1_000, 3_000, 9_999, 10_000, 16_000),
});
const step: fc.Arbitrary<Step[]> = fc.oneof(
  { weight: 30, arbitrary: call.map((one) => [one]) },
  {
    weight: 2,
    arbitrary: fc
      .record({ step: fc.constant('gap' as const), ms: fc.constantFrom(1, 5_000, 5_001, 40_000) })
      .map((one) => [one]),
  },
  { weight: 3, arbitrary: pass.map((one) => [one]) },
  { weight: 6, arbitrary: pass.map((one) => [one, { step: 'reap' as const }]) },
  {
    weight: 10,
    arbitrary: fc
      .record({ step: fc.constant('race' as const), calls: fc.array(call, { minLength: 2, maxLength: 3 }) })
      .map((one) => [one]),
  },
);

const targetOf = (kind: Kind, host: number) => (kind === 'dns' ? `ns${host}:53` : `host${host}:443`);
const specOf = (kind: Kind, host: number) =>
  kind === 'dns'
    ? { kind, query: 'example.com', server: `ns${host}` }
    : { kind, host: `host${host}`, port: 443 };

describe('tasks and leases', () => {
  let folder: string;
  let plane: ControlPlane;
  let agents: number[];
  const identities = new Map<number, AgentIdentity>();
  let serial = 0;
  const clock = new TestClock();
  const service = <T>(type: abstract new (...args: never[]) => T): T => plane.app.get<T>(type);

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'control-plane-states-'));
    const settings = {
      ...readSettings({
        CONTROL_PLANE_DATABASE_URL: await databaseIn(folder),
        CONTROL_PLANE_ADMIN_TOKEN: ADMIN_TOKEN,
        CONTROL_PLANE_SIGNING_KEY_FILE: join(folder, 'signing-key.pem'),
      }),
      leaseDurationMs: TERMS.leaseMs,
      leaseLifetimeMs: TERMS.lifetimeMs,
      retryBackoffMs: TERMS.backoffMs,
      retryBackoffMaxMs: TERMS.backoffMaxMs,
    };
    plane = await createApp(settings, { clock, logger: pino({ level: 'silent' }) });
    // Maintenance happens if the history says so, and at no other time.
    const schedule = service(SchedulerRegistry);
    for (const name of schedule.getIntervals()) schedule.deleteInterval(name);
    for (const name of schedule.getCronJobs().keys()) schedule.deleteCronJob(name);
    const free = () => undefined;
    const charge = { waitMs: 0, success: () => free, failure: free, beforeLookup: free };
    agents = [];
    identities.clear();
    for (let i = 0; i < 3; i++) {
      const who = await service(RegistrationService).register({ address: '127.0.0.1' }, charge);
      identities.set(who.agent_id, identityOf(who));
      agents.push(who.agent_id);
    }
  });

  afterAll(async () => {
    await plane.stop();
    await removeDatabaseIn(folder);
  });

  const identity = (agentId: number): AgentIdentity => identities.get(agentId) as AgentIdentity;

  /** Empties the queue; agents, and the ids that were given, stay. */
  async function startOver(): Promise<ReferenceModel> {
    await plane.database.write(async (tx) => {
      await emptyQueue(tx);
      await tx.run(`UPDATE agents SET state = 'active'`);
    });
    await service(QueueMaintainer).reap();
    return ReferenceModel.empty(TERMS, clock.now(), agents);
  }

  /** Says what a planned call is in the history as it stands. */
  function operationOf(plan: Call, model: ReferenceModel): Operation {
    const now = clock.now();
    const at = (rows: readonly { id: number }[], which: Pick) =>
      which === 'unknown' ? UNKNOWN_ID : (rows.at(-1 - (which % Math.max(1, rows.length)))?.id ?? UNKNOWN_ID);
    const live = model.leases.filter((row) => row.state === 'active');
    const lease = ({ of, back }: LeasePick) =>
      at(of === 'live' && live.length > 0 ? live : model.leases, back);
    const asker = (by: Who, leases: readonly number[]) =>
      by === 'holder'
        ? (model.leases.find((row) => row.id === leases[0])?.agent_id ?? (agents[0] as number))
        : (agents[by] as number);
    switch (plan.step) {
      case 'enqueue':
        return {
          op: 'enqueue',
          tasks: plan.tasks.map(({ kind, host, runIn, notAfterIn, ...rest }) => ({
            ...rest,
            kind,
            target: targetOf(kind, host),
            spec: specOf(kind, host),
            runAt: runIn === null ? null : now + runIn,
            notAfter: notAfterIn === null ? null : now + notAfterIn,
          })),
        };
      case 'claim':
        return {
          op: 'claim',
          agent: agents[plan.who] as number,
          capacities: { dns: plan.dns, tcp: plan.tcp },
          ...(plan.key === null ? {} : { key: plan.key }),
        };
      case 'extend': {
        const leases = [...new Set(plan.leases.map(lease))];
        return { op: 'extend', agent: asker(plan.who, leases), leases, byMs: plan.byMs };
      }
      case 'report': {
        const reports = plan.reports.map((report) => ({ ...report, lease: lease(report.lease) }));
        const listed = (as: 'completed' | 'cancelled'): Report[] => {
          const byLease = new Map(reports.filter((r) => r.as === as).map((r) => [r.lease, r]));
          return [...byLease.values()].map(({ lease: id, outcome }) => ({
            lease: id,
            serial: ++serial,
            ...(outcome === null ? {} : { outcome }),
          }));
        };
        return {
          op: 'report',
          agent: asker(
            plan.who,
            reports.map((report) => report.lease),
          ),
          completed: listed('completed'),
          cancelled: listed('cancelled'),
        };
      }
      case 'cancel':
      case 'retry':
        return { op: plan.step, task: at(model.tasks, plan.task) };
      case 'limit':
        return {
          op: 'limit',
          kind: plan.kind,
          target: plan.kind === null || plan.host === null ? null : targetOf(plan.kind, plan.host),
          limit: plan.limit,
        };
      case 'reap':
      case 'tidy':
        return { op: plan.step };
      default:
        return { op: 'change', agent: agents[plan.who] as number, transition: plan.step };
    }
  }

  const detail = ({ id, state, reason, attempts, leases }: TaskDetail) => ({
    id,
    state,
    reason,
    attempts,
    leases: leases.map((lease) => [lease.lease_id, lease.state]),
  });

  /** Makes the call. @returns its answer, as the reference speaks of it */
  async function ask(operation: Operation): Promise<unknown> {
    switch (operation.op) {
      case 'enqueue': {
        const inputs = operation.tasks.map((asked: NewTask) => ({
          kind: asked.kind,
          spec: asked.spec,
          priority: asked.priority,
          run_at: toTimestamp(asked.runAt),
          not_after: toTimestamp(asked.notAfter),
          max_attempts: asked.maxAttempts,
          unique_key: asked.uniqueKey,
        }));
        const { tasks } = await service(TasksService).enqueue(OPERATOR, inputs, undefined);
        return tasks.map(({ id, state }) => ({ id, state }));
      }
      case 'claim': {
        const { agent, capacities, key } = operation;
        const hangUp = new HangUpSignal();
        const request = { agent_id: agent, capacities };
        const { leases } = await service(ClaimsService).claim(identity(agent), request, key, hangUp);
        return leases.map((lease) => ({ ...lease }));
      }
      case 'extend': {
        const { agent, leases, byMs } = operation;
        const request = { agent_id: agent, lease_ids: leases, extend_by_ms: byMs };
        return service(LeasesService).extend(identity(agent), request);
      }
      case 'report': {
        const body = (reports: Report[]) =>
          reports.map((report) => ({
            lease_id: report.lease,
            observations: [{ name: 'serial', value: report.serial }],
            ...(report.outcome === undefined ? {} : { outcome: report.outcome }),
          }));
        return service(LeasesService).report(identity(operation.agent), {
          agent_id: operation.agent,
          completed: body(operation.completed),
          cancelled: body(operation.cancelled),
        });
      }
      case 'cancel':
        return detail(JSON.parse(await service(TasksService).cancel(OPERATOR, operation.task)));
      case 'retry':
        return detail(JSON.parse(await service(TasksService).retry(OPERATOR, operation.task)));
      case 'change': {
        const view = await service(FleetService).change(OPERATOR, operation.agent, operation.transition);
        const status = view.status === 'online' || view.status === 'offline' ? 'active' : view.status;
        return { status, live_leases: view.live_leases };
      }
      case 'limit': {
        const { kind, target, limit } = operation;
        const [window] = await service(ConcurrencyService).setLimits(OPERATOR, [{ kind, target, limit }]);
        return {
          limit: window?.limit,
          leased: window?.leased,
          available: window?.available,
          ...(target === null ? { queued: window?.queued } : {}),
        };
      }
      case 'tidy':
        await service(QueueMaintainer).foldCounts();
        await service(QueueMaintainer).moveTasks();
        return null;
      case 'reap':
        await service(QueueMaintainer).reap();
        return null;
    }
  }

  async function answerTo(operation: Operation): Promise<Answer> {
    try {
      return { is: await ask(operation) };
    } catch (error) {
      const { code } = error as { code?: string };
      // Only errors of the catalogue are answers.
      if (!code?.startsWith('ERR_') || code === 'ERR_BACKEND' || code === 'ERR_UNAVAILABLE') throw error;
      return { error: code };
    }
  }

  async function snapshot(statements: Statements): Promise<Snapshot> {
    const tasks = await statements.rows<Omit<TaskRow, 'spec'> & { spec: string }>(
      `SELECT id, kind, target, spec, state, priority, run_at, not_after, attempts, max_attempts, unique_key, lease_id,
         reason, finished_at FROM (${ALL_TASKS}) AS v ORDER BY id`,
    );
    const leases = await statements.rows<LeaseRow>(
      `SELECT id, task_id, agent_id, attempt, state, granted_at, deadline_at, lifetime_ends_at, ended_at
       FROM leases ORDER BY id`,
    );
    const results = await statements.rows<
      Omit<ResultRow, 'serial' | 'standing'> & { observations: string; state: LeaseState }
    >(
      `SELECT id AS lease_id, task_id, agent_id, state, report, outcome, observations, reported_at AS received_at
       FROM leases WHERE report IS NOT NULL ORDER BY id`,
    );
    const fleet = await statements.rows<{ id: number; state: string }>('SELECT id, state FROM agents');
    const windows = await statements.rows<{ kind: string; target: string; slots: number }>(
      'SELECT kind, target, slots FROM concurrency_windows',
    );
    return {
      tasks: tasks.map((row) => ({ ...row, spec: JSON.parse(row.spec) as object })),
      leases: leases.map((row) => ({ ...row })),
      results: results.map(({ observations, state, lease_id, task_id, agent_id, ...row }) => ({
        ...{ lease_id, task_id, agent_id, standing: standingOf(state) },
        ...row,
        serial: JSON.parse(observations)[0]?.value ?? null,
      })),
      agents: Object.fromEntries(fleet.map((row) => [row.id, row.state])),
      limits: Object.fromEntries(
        windows.map((row) => [windowName(row.kind || null, row.target || null), row.slots]),
      ),
    };
  }

  async function play(steps: readonly Step[]): Promise<void> {
    const model = await startOver();
    const history: string[] = [];
    /** Leased tasks by window, as they were before the step. */
    let leasedBefore = new Map<string, number>();
    for (const plan of steps) {
      if (plan.step === 'gap' || plan.step === 'pass') {
        history.push(JSON.stringify(plan));
        for (let left = plan.ms; left > 0; left -= plan.step === 'gap' ? plan.ms : 1_000) {
          const ms = plan.step === 'gap' ? plan.ms : Math.min(left, 1_000);
          clock.advance(ms);
          model.advance(ms);
          // The reaper notices the end of a gap, as it does four times a second; here it is quick.
          await serviceRuns(plane.app);
          model.seen();
        }
        continue;
      }
      const operations = asked(plan).map((one) => operationOf(one, model));
      history.push(operations.map((operation) => JSON.stringify(operation)).join('  |  '));
      try {
        const answers = await Promise.all(operations.map(answerTo));
        history.push(`  -> ${answers.map((answer) => JSON.stringify(answer)).join('  |  ')}`);
        const { stored, broken, leased } = await plane.database.read(async (statements) => ({
          stored: await snapshot(statements),
          broken: await brokenPromises(statements),
          leased: await leasedByWindow(statements),
        }));
        if (broken.length > 0) throw new Error(broken.join('\n'));
        const lowered = operations.some((operation) => operation.op === 'limit');
        for (const [name, count] of lowered ? [] : leased) {
          const limit = stored.limits[name];
          if (limit !== undefined && count > limit && count > (leasedBefore.get(name) ?? 0))
            throw new Error(`${count} leases in window '${name}', with a limit of ${limit}`);
        }
        leasedBefore = leased;
        model.explain(operations, answers, stored);
      } catch (error) {
        throw new Error(`${(error as Error).message}\nafter:\n${history.join('\n')}`, { cause: error });
      }
    }
    await compareViews(model);
  }

  /** What operators are shown at the end is what the reference says. */
  async function compareViews(model: ReferenceModel): Promise<void> {
    const shown = await Promise.all(
      model.tasks.map(async ({ id }): Promise<TaskDetail> => JSON.parse(await service(TasksService).get(id))),
    );
    expect(
      shown.map(({ id, state, attempts, run_at, leases }) => ({
        id,
        state,
        attempts,
        run_at,
        live: leases.filter((lease) => lease.state === 'active').map((lease) => lease.lease_id),
      })),
    ).toEqual(
      model.tasks.map(({ id, state, attempts, run_at, lease_id }) => ({
        id,
        state,
        attempts,
        run_at: run_at === null ? null : toTimestamp(run_at as number),
        live: lease_id === null ? [] : [lease_id],
      })),
    );
    const depth: Record<string, number> = {};
    for (const { kind, state } of model.tasks)
      depth[`${kind} ${state}`] = (depth[`${kind} ${state}`] ?? 0) + 1;
    const { depths } = await service(TasksService).stats();
    expect(Object.fromEntries(depths.map(({ kind, state, count }) => [`${kind} ${state}`, count]))).toEqual(
      depth,
    );
  }

  it(
    'do in any history what the reference says, and break no promise on the way',
    async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(step, { maxLength: 60, size: 'max' }), async (steps) => {
          await play(steps.flat());
        }),
        // A caller that wins a race on PostgreSQL may not win it again, so a shorter history may tell nothing.
        { numRuns: RUNS, endOnFailure: onPostgres },
      );
    },
    TIMEOUT_MS,
  );
});

/** The calls of a step. In a race, one reaper and one use of a key at most: a key's second call is told to wait. */
function asked(plan: Exclude<Step, { step: 'gap' | 'pass' }>): Call[] {
  if (plan.step !== 'race') return [plan];
  const seen = new Set<string>();
  return plan.calls.flatMap((one): Call[] => {
    if (one.step === 'claim') return seen.size === seen.add('claim').size ? [{ ...one, key: null }] : [one];
    return (one.step === 'reap' || one.step === 'tidy') && seen.size === seen.add(one.step).size ? [] : [one];
  });
}

async function leasedByWindow(statements: Statements): Promise<Map<string, number>> {
  const rows = await statements.rows<{ kind: string; target: string }>(
    `SELECT t.kind, t.target FROM leases l JOIN tasks t ON t.id = l.task_id WHERE l.state = 'active'`,
  );
  const counts = new Map<string, number>();
  for (const { kind, target } of rows) {
    for (const name of ['', kind, windowName(kind, target)]) counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}
