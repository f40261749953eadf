import { Injectable } from '@nestjs/common';
import { Database } from '../database/database';
import { Meter } from '../telemetry/meter';
import { LOWEST_RATE } from './pacing';
import { perSecond } from './window-bounds';
import { countTargetWindows, selectShownWindows } from './windows.queries';

/** The most targets with a limit that are counted. */
const MAX_TARGETS = 100_000;

/** Shows the windows of everything and of each kind, and how targets' windows stand: the same on each replica. */
@Injectable()
export class WindowMetrics {
  constructor(meter: Meter, database: Database) {
    const labels = ['scope', 'kind'] as const;
    const limit = meter.gauge({
      name: 'window_limit',
      help: 'The most leases at once in windows with a limit.',
      labels,
    });
    const leased = meter.gauge({
      name: 'window_leased',
      help: 'Live leases in windows with a limit.',
      labels,
    });
    const available = meter.gauge({
      name: 'window_available',
      help: 'Free slots of windows with a limit.',
      labels,
    });
    const rate = meter.gauge({
      name: 'window_rate_starts_per_second',
      help: 'The most starts a second in windows with a rate.',
      labels,
    });
    const targets = meter.gauge({
      name: 'target_windows',
      help: 'Windows of targets with a limit or a rate: open (with room), full, and lowest (a limit of 1 or 0, or adaptive at the lowest rate).',
      labels: ['state'],
    });
    meter.onScrape(async () => {
      const [windows, counts] = await database.read(async (statements) => [
        await selectShownWindows(statements),
        await countTargetWindows(statements, MAX_TARGETS, LOWEST_RATE),
      ]);
      for (const gauge of [limit, leased, available, rate]) gauge.reset();
      for (const { scope, kind, slots, leased: held, rate: rateNow } of windows) {
        leased.set({ scope, kind }, held);
        if (rateNow !== null) rate.set({ scope, kind }, perSecond(rateNow));
        if (slots === null) continue;
        limit.set({ scope, kind }, slots);
        available.set({ scope, kind }, Math.max(0, slots - held));
      }
      const byState = new Map(counts.map(({ state, count }) => [state, count]));
      for (const state of ['open', 'full', 'lowest'] as const)
        targets.set({ state }, byState.get(state) ?? 0);
    });
  }
}
