import { NestFactory } from '@nestjs/core';
import type { OriginalTask } from '../database/original';
import type { Transaction } from '../database/statements';
import { KindsModule } from '../kinds/kinds.module';
import { TaskKinds } from '../kinds/task-kinds';
import { QueueDepth } from '../queue/depth';
import { insertLanes } from '../queue/lanes.queries';
import { insertScheduled, insertTasks } from '../queue/transitions.queries';
import { DEFAULT_MAX_ATTEMPTS } from './tasks.service';

/** The result of importing the queued tasks of another database. */
export interface ImportedTasks {
  taken: number;
  /** Not imported; the first of them are in the notes. */
  invalid: number;
  /** The problems of tasks, by their old ids. */
  notes: [id: number, note: string][];
}

const MAX_NOTES = 100;
const BATCH = 1_000;

/** Runs a function with the program's own kinds, without the application. */
export async function withKinds<T>(work: (kinds: TaskKinds) => Promise<T>): Promise<T> {
  const context = await NestFactory.createApplicationContext(KindsModule, {
    logger: false,
    abortOnError: false,
  });
  try {
    return await work(context.get(TaskKinds));
  } finally {
    await context.close();
  }
}

/**
 * Imports queued tasks of the original control plane under new ids, with the checks of an enqueue. They are `scheduled`
 * for now: the next server that starts queues them, in order and within the limits.
 */
export async function importTasks(
  tx: Transaction,
  kinds: TaskKinds,
  tasks: Iterable<OriginalTask>,
): Promise<ImportedTasks> {
  const result: ImportedTasks = { taken: 0, invalid: 0, notes: [] };
  const depth = new QueueDepth();
  let batch: { kind: string; target: string; spec: string }[] = [];
  const store = async () => {
    if (batch.length === 0) return;
    const ids = await insertTasks(
      tx,
      batch.map((task) => ({
        ...task,
        ...{ priority: 0, run_at: tx.now, not_after: null, max_attempts: DEFAULT_MAX_ATTEMPTS },
        ...{ unique_key: null, traceparent: null },
      })),
    );
    const stored = batch;
    await insertScheduled(
      tx,
      ids.map((id, i) => ({ task_id: id, kind: (stored[i] as { kind: string }).kind, run_at: tx.now })),
    );
    await insertLanes(
      tx,
      [...new Set(batch.map(({ kind }) => kind))].map((kind) => ({ kind, target: '' })),
    );
    await depth.count(
      tx,
      batch.map(({ kind }) => ({ kind, from: null, to: 'scheduled' })),
    );
    batch = [];
  };
  for (const { id, kind, spec } of tasks) {
    const accepted = kinds.accept(kind, parse(spec));
    if ('problems' in accepted) {
      result.invalid++;
      const problems = Object.entries(accepted.problems).map(([field, problem]) => `${field} ${problem}`);
      if (result.notes.length < MAX_NOTES) result.notes.push([id, problems.join('; ')]);
      continue;
    }
    batch.push({ kind, ...accepted });
    result.taken++;
    if (batch.length === BATCH) await store();
  }
  await store();
  return result;
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}
