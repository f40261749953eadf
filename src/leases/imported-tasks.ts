import { Module } from '@nestjs/common';
import { DiscoveryModule, NestFactory } from '@nestjs/core';
import type { OriginalTask } from '../database/original';
import type { Transaction } from '../database/statements';
import { DnsKind, HttpKind, PingKind, TcpKind, TraceKind } from './kinds';
import { TaskKinds } from './task-kinds';
import { DEFAULT_MAX_ATTEMPTS } from './tasks.service';

/** What became of the queued tasks of another database. */
export interface ImportedTasks {
  taken: number;
  /** Not taken over, of which the first are in the notes. */
  invalid: number;
  /** What is wrong with tasks, by the id that they had. */
  notes: [id: number, note: string][];
}

const MAX_NOTES = 100;
const BATCH = 1_000;

/** The kinds alone: nothing of the application starts. */
@Module({
  imports: [DiscoveryModule],
  providers: [TaskKinds, DnsKind, HttpKind, TcpKind, PingKind, TraceKind],
})
class KindsModule {}

/** Does something with the kinds that the program brings, without the application. */
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
 * Stores queued tasks of the original control plane under new ids, checked as enqueued ones are. They are `scheduled` for
 * now: the server that starts next queues them, in their order and within the ceilings.
 */
export async function importTasks(
  tx: Transaction,
  kinds: TaskKinds,
  tasks: Iterable<OriginalTask>,
): Promise<ImportedTasks> {
  const result: ImportedTasks = { taken: 0, invalid: 0, notes: [] };
  const counts = new Map<string, number>();
  let batch: { kind: string; target: string; spec: string }[] = [];
  const store = async () => {
    if (batch.length === 0) return;
    await tx.run(
      `INSERT INTO tasks (kind, target, spec, state, priority, run_at, attempts, max_attempts, created_at, updated_at)
       SELECT kind, target, spec, 'scheduled', 0, $2, 0, $3, $2, $2
       FROM ${tx.dialect.rowset('$1', { kind: 'text', target: 'text', spec: 'text' })} AS r`,
      JSON.stringify(batch),
      tx.now,
      DEFAULT_MAX_ATTEMPTS,
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
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
    result.taken++;
    if (batch.length === BATCH) await store();
  }
  await store();
  for (const [kind, count] of counts) {
    await tx.run(
      `INSERT INTO task_counts (kind, state, count) VALUES ($1, 'scheduled', $2)
       ON CONFLICT (kind, state) DO UPDATE SET count = task_counts.count + excluded.count`,
      kind,
      count,
    );
  }
  return result;
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}
