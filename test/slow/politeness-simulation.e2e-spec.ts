import {
  measure,
  missedBy,
  OTHERS,
  PacedRule,
  SCENARIOS,
  WindowRule,
} from '../../bench/politeness/simulation.mjs';

/** Runs of 600 s of simulated time, of up to 2,000 queries a second. */
const PATIENCE_MS = 120_000;

describe('the pacing rule in simulated time', () => {
  it.each(Object.entries(SCENARIOS))(
    '%s: meets its thresholds',
    (_name, scenario) => {
      expect(missedBy(measure(scenario), scenario.needs)).toEqual([]);
    },
    PATIENCE_MS,
  );

  it(
    'has thresholds that a rule without pacing misses',
    () => {
      const missing = Object.entries(SCENARIOS).filter(
        ([, scenario]) => missedBy(measure(scenario, WindowRule, 5), scenario.needs).length > 0,
      );
      expect(missing.map(([name]) => name)).toEqual(Object.keys(SCENARIOS));
    },
    PATIENCE_MS,
  );

  it.each(Object.entries(OTHERS))(
    '%s: finds the rate of the server, and keeps to the bound',
    (_name, scenario) => {
      const { capacityAt = () => 100, maxRate = Number.POSITIVE_INFINITY } = scenario;
      for (const { rates, sent } of measure(scenario, PacedRule, 2).runs) {
        const best = Math.min(capacityAt(rates.length * 1_000), maxRate / 1_000);
        const last = rates.slice(-60);
        expect(last.reduce((sum, rate) => sum + rate, 0) / last.length).toBeGreaterThan(best / 2);
        expect(Math.max(...rates)).toBeLessThanOrEqual(maxRate / 1_000);
        // A start each 1/rate s: in any second at most one more.
        expect(Math.max(...sent)).toBeLessThanOrEqual(maxRate / 1_000 + 1);
      }
    },
    PATIENCE_MS,
  );
});
