// Tasks claimed and reported one at a time by many callers at once, and by several replicas on one database (PostgreSQL).
import pg from 'pg';
import { newDatabase } from './processes.mjs';
import { HttpReplicas, IN_BATCHES, InProcessReplicas, ONE_AT_A_TIME } from './replicas.mjs';
import { comparison } from './report.mjs';

const CALLERS = [1, 4, 16, 64, 256];
const MOST_CALLERS = Math.max(...CALLERS);
const REPLICAS = 2;
const MORE_REPLICAS = 3;
/** Ten times the rate of the queue before slots were taken at claim: 97 a second. */
const AIM = { callers: 64, min: 970 };
/** Connections of each replica's pool, by default. */
const POOL = 10;

/**
 * The most that the database can do for callers that each commit two small changes and nothing else: a measure of the
 * machine.
 */
class BareCommits {
  static async start() {
    const pool = new pg.Pool({ connectionString: await newDatabase('postgres'), max: REPLICAS * POOL });
    await pool.query('CREATE TABLE bare (id int PRIMARY KEY, n int NOT NULL)');
    await pool.query('INSERT INTO bare SELECT i, 0 FROM generate_series(0, $1::int) AS i', [MOST_CALLERS]);
    return Object.assign(new BareCommits(), { pool });
  }

  async rate(callers, { seconds }) {
    const change = { name: 'change', text: 'UPDATE bare SET n = n + 1 WHERE id = $1' };
    const startedAt = performance.now();
    let done = 0;
    await Promise.all(
      Array.from({ length: callers }, async (_, id) => {
        while (performance.now() - startedAt < seconds * 1_000) {
          await this.pool.query({ ...change, values: [id] });
          await this.pool.query({ ...change, values: [id] });
          done += 1;
        }
      }),
    );
    return done / ((performance.now() - startedAt) / 1_000);
  }

  stop() {
    return this.pool.end();
  }
}

/**
 * Runs each side under each load, in turns. The first round is for warming up. @returns for each load, each side's
 * rates
 */
async function inTurns(sides, loads, { rounds, seconds }) {
  const rates = loads.map(() => sides.map(() => []));
  for (let round = 0; round <= rounds; round++) {
    for (const [i, { callers, size }] of loads.entries()) {
      for (const [n, side] of sides.entries()) {
        const rate = await side.rate(callers, { size, seconds });
        if (round > 0) rates[i][n].push(rate);
      }
    }
  }
  for (const side of sides) await side.stop();
  return rates;
}

export async function callers({ quick }) {
  const turns = quick ? { rounds: 3, seconds: 1 } : { rounds: 4, seconds: 4 };
  const loads = CALLERS.map((number) => ({ callers: number, size: 1 }));
  const sides = [
    await HttpReplicas.start(REPLICAS, MOST_CALLERS),
    await InProcessReplicas.start(REPLICAS),
    await BareCommits.start(),
  ];
  const rates = await inTurns(sides, loads, turns);
  const rowsOf = (side, baseline, theirs) =>
    CALLERS.map((number, i) => ({
      figure: number === 1 ? '1 caller' : `${number} callers`,
      ...{ ours: rates[i][side], baseline, theirs: theirs(i) },
    }));
  const withAim = (row, i) =>
    CALLERS[i] === AIM.callers ? { ...row, aim: { min: AIM.min }, aimOf: 'value' } : row;
  const title = `Tasks a second claimed and reported one at a time, ${REPLICAS} replicas`;
  const bare = (i) => rates[i][2];
  return [
    comparison(`${title}, through HTTP`, rowsOf(0, 'two bare commits', bare).map(withAim), [
      `Two bare commits: two updates of a row of the caller's own by primary key, each committed by itself, in process, through ${REPLICAS * POOL} connections.`,
    ]),
    comparison(
      `${title}, through HTTP: effect of more callers`,
      rowsOf(0, '1 caller', () => rates[0][0]),
    ),
    comparison(`${title}, in process`, rowsOf(1, 'two bare commits', bare)),
    await moreReplicas(turns),
  ];
}

async function moreReplicas(turns) {
  const loads = [{ ...IN_BATCHES, aim: { min: 0.9 } }, ONE_AT_A_TIME];
  const most = Math.max(...loads.map(({ callers: number }) => number));
  const sides = [await HttpReplicas.start(MORE_REPLICAS, most), await HttpReplicas.start(1, most)];
  const rates = await inTurns(sides, loads, turns);
  return comparison(
    `Tasks a second claimed and reported through HTTP, ${MORE_REPLICAS} replicas against one`,
    loads.map(({ figure, aim }, i) => ({
      ...{ figure, ours: rates[i][0], baseline: '1 replica', theirs: rates[i][1], aim },
    })),
  );
}
