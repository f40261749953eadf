import type { Transaction } from '../database/statements';
import type { CounterInstrument } from '../telemetry/meter';

/** Counts items by their kind, once the unit is committed. */
export function addByKind(
  tx: Transaction,
  counter: CounterInstrument<'kind'>,
  items: readonly { kind: string }[],
): void {
  if (items.length === 0) return;
  const counts = new Map<string, number>();
  for (const { kind } of items) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  tx.afterCommit(() => {
    for (const [kind, count] of counts) counter.add({ kind }, count);
  });
}
