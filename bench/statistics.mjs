// The arithmetic of the benchmark: percentiles, ratios of rounds, seeded arrivals, and the search by bisection. Pure
// functions, which statistics.spec.mjs tests with known results.

/**
 * Computes a percentile (nearest rank): the smallest value that at least `percent` percent of the values do not
 * exceed. NaN if there are none.
 */
export function percentile(values, percent) {
  if (values.length === 0) return Number.NaN;
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)];
}

export const median = (values) => percentile(values, 50);

/** Computes the smallest, the median and the largest value. */
export const spread = (values) => ({
  min: Math.min(...values),
  median: median(values),
  max: Math.max(...values),
});

/** Computes the ratios of the values of both sides, round by round. */
export const ratios = (ours, theirs) => spread(ours.map((value, i) => value / theirs[i]));

/** Creates a generator of numbers from 0 to below 1, the same for the same seed (mulberry32). */
export function seededRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Schedules the calls of agents: one call of each route in each period of 60 s / perMinute, at a random instant; the
 * periods of each agent and route are shifted by a random phase. Over many agents that is close to a Poisson process,
 * and no agent is ever more than two calls ahead of its rate, so that a quota with a burst of 3 admits all calls.
 * @param rates calls a minute of each route
 * @returns the arrivals in order: the instant in ms from 0 to below `durationMs`, the agent's and the route's index
 */
export function schedule({ agents, rates, durationMs, seed }) {
  const random = seededRandom(seed);
  const arrivals = [];
  for (let agent = 0; agent < agents; agent++) {
    for (const [route, perMinute] of rates.entries()) {
      const period = 60_000 / perMinute;
      for (let from = -random() * period; from < durationMs; from += period) {
        const at = from + random() * period;
        if (at >= 0 && at < durationMs) arrivals.push({ at, agent, route });
      }
    }
  }
  return arrivals.sort((a, b) => a.at - b.at);
}

/**
 * Searches for the largest number that meets a condition, which small numbers meet and large ones do not.
 * @param within the relative precision of the result
 * @returns the largest number that was tried and passed, and the smallest that failed; undefined if none did
 */
export async function bisect({ low, high, within }, holds) {
  let passed;
  let failed;
  if (await holds(low)) passed = low;
  else return { passed, failed: low };
  if (await holds(high)) return { passed: high, failed };
  failed = high;
  while (failed - passed > Math.max(1, within * passed)) {
    const middle = Math.floor((passed + failed) / 2);
    if (await holds(middle)) passed = middle;
    else failed = middle;
  }
  return { passed, failed };
}
