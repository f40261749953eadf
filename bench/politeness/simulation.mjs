// Simulates a fleet that checks one target, in simulated time. The pacing rule is the product's own code, as built in
// dist/concurrency/pacing.js, and each decision reads a state that was stored and read again.
//
// Modelled:
// - a server that answers queries one after the other, with a queue: a query that finds the queue full gets no answer,
//   or, if the server pushes back, a refusal;
// - agents with round-trip times of 10 to 100 ms, that time out after 2 s and report every 5 s, each at its own phase;
// - random loss, broken agents that never get an answer, servers that become slower, stop or come back;
// - more tasks than can ever be run. Leases are granted at reports and every 100 ms, at most 1 s ahead of their start,
//   each to a random agent.
// Not modelled: the database, HTTP, clocks that differ, agents that crash or come and go, leases that expire, other
// clients of the server, a network with a capacity or a queue of its own.
import { createRequire } from 'node:module';
import { seededRandom } from '../statistics.mjs';

const require = createRequire(import.meta.url);
const {
  applyOutcomes,
  firstState,
  leasesAllowed,
  packState,
  unpackState,
} = require('../../dist/concurrency/pacing.js');

export const DURATION_MS = 600_000;
const TICK_MS = 100;
const AHEAD_MS = 1_000;
const TIMEOUT_MS = 2_000;
/** No rate in a scenario comes near it. */
const UNBOUNDED = 1_000_000_000;

/** A scenario without the fields that it changes. */
const DEFAULTS = {
  /** Queries a second that the server answers at an instant. */
  capacityAt: () => 100,
  /** Queries that wait at the server. */
  queue: 50,
  /** The time to wait that the server asks for, in s, if it pushes back; undefined if it drops queries instead. */
  retryAfterS: undefined,
  /** Share of queries that the network loses. */
  loss: 0,
  /** By how much round-trip times are longer at an instant, as a factor. */
  slownessAt: () => 1,
  agents: 20,
  /** How many of the agents never get an answer. */
  broken: 0,
  reportEveryMs: 5_000,
  /** The operator's bound, in starts per 1,000 s. */
  maxRate: UNBOUNDED,
};

/** Answers queries one after the other. */
class Server {
  #freeAt = 0;

  constructor({ capacityAt, queue }) {
    this.capacityAt = capacityAt;
    this.queue = queue;
  }

  /** @returns how long the query takes at the server, in ms; undefined if there is no room in its queue */
  arrive(at) {
    const perSecond = this.capacityAt(at);
    if (perSecond === 0) return undefined;
    const serviceMs = 1_000 / perSecond;
    const waitMs = Math.max(0, this.#freeAt - at);
    if (waitMs / serviceMs >= this.queue) return undefined;
    this.#freeAt = Math.max(at, this.#freeAt) + serviceMs;
    return waitMs + serviceMs;
  }
}

/** Functions in the order of their time: a binary heap. */
class Agenda {
  #heap = [];

  add(at, run) {
    const heap = this.#heap;
    let i = heap.push({ at, run }) - 1;
    for (let parent = (i - 1) >> 1; i > 0 && heap[parent].at > heap[i].at; parent = (i - 1) >> 1) {
      [heap[parent], heap[i]] = [heap[i], heap[parent]];
      i = parent;
    }
  }

  next() {
    const heap = this.#heap;
    const [first] = heap;
    const last = heap.pop();
    if (heap.length === 0) return first;
    heap[0] = last;
    for (let i = 0; ; ) {
      let least = i;
      for (const child of [2 * i + 1, 2 * i + 2])
        if (child < heap.length && heap[child].at < heap[least].at) least = child;
      if (least === i) return first;
      [heap[least], heap[i]] = [heap[i], heap[least]];
      i = least;
    }
  }
}

/** The product's rule, with what the server does around it: the spacing of starts, and the count of those granted. */
export class PacedRule {
  #bounds;
  #state;
  #nextStartAt = 0;
  #starts = 0;
  changes = [];

  constructor({ maxRate }) {
    this.#bounds = { maxRate, limit: null };
    this.#state = firstState(0, 0, this.#bounds);
  }

  get ratePerSecond() {
    return this.#state.rate / 1_000;
  }

  /** @returns the start of a lease that is granted now; undefined if none can be */
  grant(now, leased) {
    const startAt = Math.max(now, this.#nextStartAt, this.#state.holdUntil);
    if (startAt > now + AHEAD_MS || leased >= leasesAllowed(this.#state, this.#bounds)) return undefined;
    this.#nextStartAt = startAt + 1_000_000 / this.#state.rate;
    this.#starts++;
    return startAt;
  }

  report(outcomes, now, lastLeaseId) {
    const { state, change } = applyOutcomes(this.#state, outcomes, {
      ...{ now, lastLeaseId, starts: this.#starts, bounds: this.#bounds },
    });
    if (state.epochLeaseId !== this.#state.epochLeaseId) this.#starts = 0;
    // Not as late as at a lower rate, and not at the same time as starts that are granted already.
    if (change) this.#nextStartAt = Math.min(this.#nextStartAt, now + AHEAD_MS + 1_000_000 / state.rate);
    if (change) this.changes.push({ at: now, ...change });
    this.#state = unpackState(packState(state));
  }
}

/** For contrast: a number of leases at once, one more for each answer, half of it for each failure, and no pacing. */
export class WindowRule {
  #window = 10;
  changes = [];

  get ratePerSecond() {
    return this.#window;
  }

  grant(now, leased) {
    return leased < Math.floor(this.#window) ? now : undefined;
  }

  report(outcomes) {
    for (const { signal } of outcomes)
      this.#window = signal === 'answered' ? this.#window + 1 : Math.max(1, this.#window / 2);
  }
}

/**
 * Runs a scenario under a rule; the same seed gives the same run.
 * @returns `good`: answers in time, as a share of those that the server can give; `overload`: the share of queries that found
 * no room at the server; `perMinute`: queries a minute; and by the second: `rates` of the rule, `sent` and `dropped`
 */
export function simulate(scenario, seed, Rule = PacedRule) {
  const asked = { ...DEFAULTS, ...scenario };
  const random = seededRandom(seed);
  const agenda = new Agenda();
  const server = new Server(asked);
  const rule = new Rule(asked);
  const seconds = DURATION_MS / 1_000;
  const bySecond = { rates: [], sent: new Array(seconds).fill(0), dropped: new Array(seconds).fill(0) };
  const agents = Array.from({ length: asked.agents }, (_, i) => ({
    agentId: i + 1,
    baseRttMs: 10 + 90 * random(),
    isBroken: i < asked.broken,
    done: [],
  }));
  let lastLeaseId = 0;
  let leased = 0;
  let answered = 0;

  /** How a query ends, and after how many ms. */
  const ask = ({ baseRttMs, isBroken }, at) => {
    const bad = { afterMs: TIMEOUT_MS, signal: 'bad' };
    if (isBroken || random() < asked.loss) return bad;
    const rttMs = baseRttMs * asked.slownessAt(at) * (1 + 0.1 * random());
    const atServerMs = server.arrive(at + rttMs / 2);
    if (atServerMs === undefined) {
      bySecond.dropped[Math.floor(at / 1_000)]++;
      if (asked.retryAfterS === undefined || asked.capacityAt(at) === 0) return bad;
      return { afterMs: rttMs, signal: 'pushed_back', retryAfterMs: 1_000 * asked.retryAfterS };
    }
    if (rttMs + atServerMs >= TIMEOUT_MS) return bad;
    answered++;
    return { afterMs: rttMs + atServerMs, signal: 'answered', rttMs: rttMs + atServerMs };
  };
  const start = (agent, lease, at) => {
    bySecond.sent[Math.floor(at / 1_000)]++;
    const { afterMs, ...outcome } = ask(agent, at);
    agenda.add(at + afterMs, () => agent.done.push({ ...lease, ...outcome, agentId: agent.agentId }));
  };
  const grant = (now) => {
    for (let at = rule.grant(now, leased); at !== undefined; at = rule.grant(now, leased)) {
      leased++;
      const lease = { leaseId: ++lastLeaseId, grantedAt: now };
      const agent = agents[Math.floor(random() * agents.length)];
      agenda.add(at, (startAt) => start(agent, lease, startAt));
    }
  };
  const report = (agent, now) => {
    const outcomes = agent.done
      .splice(0)
      .map(({ grantedAt, ...outcome }) => ({ ...outcome, delayMs: now - grantedAt }));
    leased -= outcomes.length;
    if (outcomes.length > 0) rule.report(outcomes, now, lastLeaseId);
    grant(now);
    agenda.add(now + asked.reportEveryMs, (at) => report(agent, at));
  };
  const tick = (now) => {
    grant(now);
    if (now % 1_000 === 0) bySecond.rates.push(rule.ratePerSecond);
    agenda.add(now + TICK_MS, tick);
  };

  for (const agent of agents) agenda.add(asked.reportEveryMs * random(), (at) => report(agent, at));
  agenda.add(0, tick);
  for (let event = agenda.next(); event.at < DURATION_MS; event = agenda.next()) event.run(event.at);

  const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
  const perSecond = bySecond.sent.map((_, second) =>
    Math.min(asked.maxRate / 1_000, asked.capacityAt(1_000 * second)),
  );
  const ideal = total(perSecond);
  const sent = total(bySecond.sent);
  return {
    ...{ good: answered / ideal, overload: total(bySecond.dropped) / sent },
    ...{ perMinute: (60 * sent) / seconds, ...bySecond, changes: rule.changes },
  };
}

const third = (at) => Math.floor((3 * at) / DURATION_MS);

/** The scenarios, with what must hold of the mean over all seeds. */
export const SCENARIOS = {
  steady: { title: '100 a second', needs: { good: 0.85, overload: 0.005 } },
  drop: {
    title: '20 a second for a third of the time',
    capacityAt: (at) => (third(at) === 1 ? 20 : 100),
    needs: { good: 0.75, overload: 0.03 },
  },
  loss: { title: '5 % of queries are lost', loss: 0.05, needs: { good: 0.8 } },
  broken: { title: 'one of 20 agents is broken', broken: 1, needs: { good: 0.8 } },
  dead: { title: 'no answer at all', capacityAt: () => 0, needs: { perMinute: 5 } },
};

/** Further scenarios, without thresholds. */
export const OTHERS = {
  alone: { title: 'one agent', agents: 1 },
  many: { title: '200 agents', agents: 200 },
  small: { title: '1 a second', capacityAt: () => 1, queue: 1 },
  large: { title: '2,000 a second', capacityAt: () => 2_000, queue: 1_000 },
  bounded: { title: '2,000 a second, at most 50 allowed', capacityAt: () => 2_000, maxRate: 50_000 },
  frequent: { title: 'a report every second', reportEveryMs: 1_000 },
  seldom: { title: 'a report every 30 s', reportEveryMs: 30_000 },
  fifth: { title: 'four of 20 agents are broken', broken: 4 },
  slower: {
    title: 'round trips five times as long after a third',
    slownessAt: (at) => (third(at) > 0 ? 5 : 1),
  },
  policed: { title: 'excess is dropped without a queue', queue: 5 },
  refused: { title: 'excess is refused, with Retry-After: 5', retryAfterS: 5 },
  revived: { title: 'no answer for a third of the time', capacityAt: (at) => (third(at) === 0 ? 0 : 100) },
  ramp: {
    title: 'none, then slowly up to 100 a second',
    capacityAt: (at) => Math.floor(100 * Math.min(1, Math.max(0, (2 * at) / DURATION_MS - 0.2))),
  },
};

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Runs a scenario with seeds from 1. @returns of each figure, its mean and that of the worst seed; and the runs */
export function measure(scenario, Rule = PacedRule, seeds = 20) {
  const runs = Array.from({ length: seeds }, (_, i) => simulate(scenario, i + 1, Rule));
  const figure = (name, worst) => {
    const values = runs.map((run) => run[name]);
    return { mean: mean(values), worst: worst(...values) };
  };
  return {
    ...{ good: figure('good', Math.min), overload: figure('overload', Math.max) },
    ...{ perMinute: figure('perMinute', Math.max), runs },
  };
}

/** @returns the thresholds that the means miss, as text; none if all hold */
export const missedBy = ({ good, overload, perMinute }, needs = {}) => [
  ...(good.mean < needs.good ? [`good ${good.mean.toFixed(3)} < ${needs.good}`] : []),
  ...(overload.mean > needs.overload ? [`overload ${overload.mean.toFixed(4)} > ${needs.overload}`] : []),
  ...(perMinute.mean > needs.perMinute ? [`a minute ${perMinute.mean.toFixed(1)} > ${needs.perMinute}`] : []),
];
