// The cost of an open snapshot, such as that of pg_dump: VACUUM can't remove rows that are deleted or replaced
// meanwhile. Two databases with their own replicas, in turns; a snapshot affects only its own database.
import pg from 'pg';
import { HttpReplicas, IN_BATCHES, ONE_AT_A_TIME } from './replicas.mjs';
import { comparison } from './report.mjs';

const REPLICAS = 2;
const LOADS = [ONE_AT_A_TIME, IN_BATCHES];
/** The last part of the time, in which the snapshot is oldest. */
const LAST = 0.25;
const HELD_S = 60;

export async function snapshot({ quick, seconds: asked }) {
  const heldS = asked ?? (quick ? 20 : HELD_S);
  const seconds = quick ? 1.5 : 3;
  const most = Math.max(...LOADS.map(({ callers }) => callers));
  const sides = {
    held: await HttpReplicas.start(REPLICAS, most),
    free: await HttpReplicas.start(REPLICAS, most),
  };
  const rates = LOADS.map(() => ({ held: [], free: [] }));
  const round = async (isMeasured) => {
    for (const [i, { callers, size }] of LOADS.entries()) {
      for (const [name, side] of Object.entries(sides)) {
        const rate = await side.rate(callers, { size, seconds });
        if (isMeasured) rates[i][name].push(rate);
      }
    }
  };
  await round(false);
  const holder = new pg.Client(sides.held.database);
  await holder.connect();
  await holder.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  await holder.query('SELECT');
  const startedAt = performance.now();
  do await round(true);
  while (performance.now() - startedAt < heldS * 1_000);
  await holder.end();
  for (const side of Object.values(sides)) await side.stop();
  const baseline = 'no snapshot';
  return [
    comparison(
      `Tasks a second claimed and reported with a snapshot open for ${heldS} s, ${REPLICAS} replicas`,
      LOADS.flatMap(({ figure }, i) => {
        const { held, free } = rates[i];
        const last = Math.max(1, Math.ceil(held.length * LAST));
        return [
          { figure, ours: held, baseline, theirs: free },
          {
            figure: `${figure}: the last ${LAST * 100} % of the time`,
            ...{ ours: held.slice(-last), baseline, theirs: free.slice(-last), aim: { min: 0.9 } },
          },
        ];
      }),
    ),
  ];
}
