import { AgentKinds } from '../../src/agents/agent-kinds';
import { AgentsService } from '../../src/agents/agents.service';
import { Budgets } from '../../src/agents/budgets';
import type { Transaction } from '../../src/database/statements';
import { SETTINGS, type Settings } from '../../src/settings';
import { type Credentials, identityOf, TestClock, TestServer } from '../helpers/harness';
import { Chance } from '../helpers/hostile-requests';

/** What claims and reports of many agents ask in the unit of work that they share. */
describe('many agents in one unit of work', () => {
  let server: TestServer;
  let clock: TestClock;
  let agents: Credentials[];

  beforeEach(async () => {
    clock = new TestClock();
    server = await TestServer.start(
      { OBSERVATIONS_BYTES_PER_DAY: '100', MAX_LEASES_PER_AGENT: '8' },
      { clock },
    );
    agents = [];
    for (let i = 0; i < 5; i++) agents.push(await server.register(`probe-${i}`));
  });
  afterEach(() => server.stop());

  const idOf = (i: number): number => (agents[i] as Credentials).agent_id;
  const decide = (i: number, verb: string, body: object = {}) =>
    server.operator('POST', `/v1/agents/${idOf(i)}/${verb}`, body);
  /** Does a part of a unit. @returns what it answers, and the statements that it ran */
  async function inUnit<T>(part: (tx: Transaction) => Promise<T>): Promise<{ value: T; sql: string[] }> {
    const sql: string[] = [];
    const value = await server.database.write((tx) => {
      sql.length = 0;
      const record =
        (name: 'rows' | 'first' | 'run') =>
        (text: string, ...values: (string | number | null)[]) => {
          sql.push(text);
          return (tx[name] as (text: string, ...values: unknown[]) => Promise<unknown>)(text, ...values);
        };
      return part(
        Object.assign(Object.create(tx), {
          rows: record('rows'),
          first: record('first'),
          run: record('run'),
        }) as Transaction,
      );
    });
    return { value, sql };
  }

  it('are each judged alone, in one statement that locks them in the order of their ids', async () => {
    await decide(1, 'drain');
    await decide(2, 'disable');
    await decide(3, 'rotate', { revoke_old: true });
    await server.operator('DELETE', `/v1/agents/${idOf(4)}`);
    const service = server.app.get(AgentsService);
    const asked = [4, 3, 0, 2, 1, 0].map((i) => identityOf(agents[i] as Credentials));
    const { value, sql } = await inUnit((tx) => service.standingsOf(tx, asked));
    const shown = value.map(({ refusal, takesWork }) => [refusal?.code, takesWork]);
    expect(shown).toEqual([
      ['ERR_UNAUTHORIZED', false],
      ['ERR_UNAUTHORIZED', false],
      [undefined, true],
      ['ERR_FORBIDDEN', false],
      [undefined, false],
      [undefined, true],
    ]);
    expect(sql).toEqual([expect.stringContaining('ORDER BY id')]);
    expect((await inUnit((tx) => service.standingsOf(tx, []))).sql).toEqual([]);
    await expect(inUnit((tx) => service.requireInService(tx, asked[3] as never))).rejects.toMatchObject({
      code: 'ERR_FORBIDDEN',
    });
  });

  it('are noted to hold their first leases, once', async () => {
    const service = server.app.get(AgentsService);
    const first = () => server.rows('SELECT first_lease_at FROM agents ORDER BY id');
    const [before] = await first();
    expect(before).toEqual({ first_lease_at: null });
    await inUnit((tx) => service.noteFirstLeases(tx, [idOf(0), idOf(2)]));
    const at = clock.now();
    clock.advance(1_000);
    const { sql } = await inUnit((tx) => service.noteFirstLeases(tx, [idOf(2), idOf(3)]));
    expect(sql).toHaveLength(1);
    expect((await first()).map((row) => row.first_lease_at)).toEqual([at, null, at, at + 1_000, null]);
    const asked = agents.map(identityOf);
    const { value } = await inUnit((tx) => service.standingsOf(tx, asked));
    expect(value.map(({ hadLease }) => hadLease)).toEqual([true, false, true, true, false]);
    expect((await inUnit((tx) => service.noteFirstLeases(tx, []))).sql).toEqual([]);
  });

  it('say which kinds they take in two statements, and the same again in none', async () => {
    const kinds = server.app.get(AgentKinds);
    const learn = (...claims: [agent: number, capacities: [string, number][]][]) =>
      inUnit((tx) =>
        kinds.learn(
          tx,
          claims.map(([i, capacities]) => ({ agentId: idOf(i), capacities })),
        ),
      );
    const stored = () =>
      server.rows('SELECT agent_id, kind, capacity FROM agent_kinds ORDER BY agent_id, kind');
    const row = (i: number, kind: string, capacity: number) => ({ agent_id: idOf(i), kind, capacity });
    const first = await learn(
      [1, [['dns', 2]]],
      [
        0,
        [
          ['dns', 99],
          ['http', 1],
        ],
      ],
    );
    expect(first.sql).toHaveLength(1);
    // More than an agent may hold in all says no more.
    expect(await stored()).toEqual([row(0, 'dns', 8), row(0, 'http', 1), row(1, 'dns', 2)]);
    expect((await learn([1, [['dns', 2]]], [0, [['http', 1]]])).sql).toEqual([]);
    clock.advance(60_000);
    const second = await learn(
      [
        0,
        [
          ['dns', 0],
          ['tcp', 3],
        ],
      ],
      [1, [['dns', 0]]],
      [2, [['dns', 0]]],
    );
    expect(second.sql).toHaveLength(2);
    expect(await stored()).toEqual([row(0, 'http', 1), row(0, 'tcp', 3)]);
    // Of two claims of an agent the later counts.
    await learn([3, [['dns', 1]]], [3, [['dns', 4]]]);
    expect(await stored()).toContainEqual(row(3, 'dns', 4));
  });

  it('have what they store counted in one statement, which tells for each whether it fits', async () => {
    const budgets = server.app.get(Budgets);
    const take = (...bytes: [agent: number, bytes: number][]) =>
      inUnit((tx) => budgets.take(tx, 'observations', new Map(bytes.map(([i, count]) => [idOf(i), count]))));
    const first = await take([2, 60], [0, 100], [1, 500], [3, 0]);
    // The first of a day fits, however large it is.
    expect([first.value, first.sql.length]).toEqual([new Set(), 1]);
    const second = await take([1, 1], [2, 40], [0, 1]);
    expect([second.value, second.sql.length]).toEqual([new Set([idOf(0), idOf(1)]), 1]);
    expect((await take([2, 1])).value).toEqual(new Set([idOf(2)]));
    const rows = await server.rows('SELECT observations_bytes AS bytes FROM agent_usage ORDER BY agent_id');
    expect(rows.map(({ bytes }) => bytes)).toEqual([100, 500, 100]);
  });

  it('never store more than their budgets, whichever replicas they report to and whatever fails', async () => {
    const LIMIT = 20_000;
    const settings = { ...server.app.get<Settings>(SETTINGS), observationsBytesPerDay: LIMIT };
    const replicas = [new Budgets(clock, settings), new Budgets(clock, settings)];
    const stored = agents.map(() => 0);
    const refused = agents.map(() => false);
    let charges = 0;
    const chance = new Chance(7);
    for (let round = 0; round < 800; round++) {
      const asked = agents
        .map((_, i) => [i, 1 + Math.floor(chance.next() ** 3 * 400)] as const)
        .filter(() => chance.next() < 0.5);
      const fails = chance.next() < 0.05;
      const unit = inUnit(async (tx) => {
        const over = await (replicas[round % 2] as Budgets).take(
          tx,
          'observations',
          new Map(asked.map(([i, count]) => [idOf(i), count])),
        );
        if (fails) throw new Error('rolled back');
        return over;
      });
      if (fails) {
        await expect(unit).rejects.toThrow('rolled back');
        continue;
      }
      const { value: over, sql } = await unit;
      charges += sql.length;
      for (const [i, count] of asked) {
        if (over.has(idOf(i))) refused[i] = true;
        else stored[i] = (stored[i] as number) + count;
      }
    }
    expect(refused).toEqual(agents.map(() => true));
    for (const bytes of stored) {
      expect(bytes).toBeLessThanOrEqual(LIMIT);
      // Of two replicas each may hold an advance, and a failure may have lost some.
      expect(bytes).toBeGreaterThan(LIMIT * 0.9);
    }
    const [row] = await server.rows('SELECT max(observations_bytes) AS most FROM agent_usage');
    expect(Number(row.most)).toBeLessThanOrEqual(LIMIT);
    // Not every unit changes the agents' rows.
    expect(charges).toBeLessThan(700);
  });

  it('begin each day with their whole budgets, whatever was charged in advance', async () => {
    const settings = { ...server.app.get<Settings>(SETTINGS), observationsBytesPerDay: 1_000 };
    const budgets = new Budgets(clock, settings);
    const take = async (bytes: number) =>
      (await inUnit((tx) => budgets.take(tx, 'observations', new Map([[idOf(0), bytes]])))).value.size === 0;
    const used = async () =>
      (await server.rows('SELECT observations_bytes AS bytes FROM agent_usage'))[0].bytes;
    for (const bytes of [640, 10]) expect(await take(bytes)).toBe(true);
    expect(await used()).toBe(670);
    clock.advance(86_400_000);
    // The 20 bytes of yesterday are not for today.
    expect(await take(990)).toBe(true);
    expect(await used()).toBe(990);
    expect([await take(11), await take(10), await take(1)]).toEqual([false, true, false]);
  });
});
