import { Injectable } from '@nestjs/common';
import { Database } from '../database/database';
import { Meter } from '../telemetry/meter';
import { countTargetWindows, selectShownWindows } from './windows.queries';

/** How many targets with a limit are looked at; of more, as many are counted. */
const MAX_TARGETS = 100_000;

/** Shows the windows of everything and of each kind, and how targets' windows stand: the same on each replica. */
@Injectable()
export class WindowMetrics {
  constructor(meter: Meter, database: Database) {
    const labels = ['scope', 'kind'] as const;
    const limit = meter.gauge({
      name: 'window_limit',
      help: 'How many tasks may be worked on at once, where that is limited.',
      labels,
    });
    const leased = meter.gauge({
      name: 'window_leased',
      help: 'How many tasks are worked on, of what is limited.',
      labels,
    });
    const available = meter.gauge({
      name: 'window_available',
      help: 'How many more tasks may be worked on, where that is limited.',
      labels,
    });
    const targets = meter.gauge({
      name: 'target_windows',
      help: 'Windows of targets with a limit: with room, without, and at their lowest, a limit of 1 or 0.',
      labels: ['state'],
    });
    meter.onScrape(async () => {
      const [windows, counts] = await database.read(async (statements) => [
        await selectShownWindows(statements),
        await countTargetWindows(statements, MAX_TARGETS),
      ]);
      for (const gauge of [limit, leased, available]) gauge.reset();
      for (const { scope, kind, slots, leased: held } of windows) {
        leased.set({ scope, kind }, held);
        limit.set({ scope, kind }, slots);
        available.set({ scope, kind }, Math.max(0, slots - held));
      }
      const byState = new Map(counts.map(({ state, count }) => [state, count]));
      for (const state of ['open', 'full', 'lowest'] as const)
        targets.set({ state }, byState.get(state) ?? 0);
    });
  }
}
