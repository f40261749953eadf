import fc from 'fast-check';
import { HangUpSignal } from '../http/hang-up';
import { InFlight } from '../telemetry/in-flight';
import { Lifecycle } from '../telemetry/lifecycle';
import { ClaimWaiters, type Waiter } from './claim-waiters';

const LONG_MS = 60_000;
const AGENT = 1;
const never = () => new HangUpSignal();
const hungUp = () => {
  const signal = new HangUpSignal();
  signal.abort();
  return signal;
};

/** What a wait came to so far: undefined while it goes on. */
function watch(wait: Promise<boolean>): { result: boolean | undefined } {
  const seen: { result: boolean | undefined } = { result: undefined };
  void wait.then((result) => {
    seen.result = result;
  });
  return seen;
}

/** Lets everything run that can run. */
const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

const inFlight = () => new InFlight({ maxInFlight: 1, maxWaitingClaims: 1_000 });

describe('claims that wait', () => {
  let lifecycle: Lifecycle;
  let waiters: ClaimWaiters;

  beforeEach(() => {
    lifecycle = new Lifecycle();
    waiters = new ClaimWaiters(lifecycle, inFlight());
  });

  /** Ends the waits that a test left, and with them their timers. */
  afterEach(() => lifecycle.beginStop());

  const wait = (waiter: Waiter, hangUp = never()) => watch(waiter.woken(LONG_MS, hangUp));

  it('are woken in the order they came, as many as there are tasks', async () => {
    const waits = [1, 2, 3].map(() => wait(waiters.enlist(['dns'], AGENT)));
    waiters.wake('dns', 2);
    await settle();
    expect(waits.map((w) => w.result)).toEqual([true, true, undefined]);
  });

  it('pass a wake-up that they can not use on to one other, and never to and fro', async () => {
    const kinds = ['dns', 'http', 'tcp'];
    let looks = 0;
    // As a claim whose agent holds as many as it may of each kind looks, again and again.
    const claim = async (id: number) => {
      const waiter = waiters.enlist(kinds, id);
      do {
        looks++;
        waiter.standFor(kinds);
        await settle();
        waiter.standFor([]);
        waiter.served();
      } while (looks < 1_000 && (await waiter.woken(0, never())));
      waiter.leave();
    };
    const claims = Array.from({ length: 20 }, (_, id) => claim(id));
    waiters.wake('dns', 1);
    await Promise.all(claims);
    expect(looks).toBeLessThanOrEqual(40);
  });

  it('have a wake-up go to the next that can use it', async () => {
    const full = waiters.enlist(['dns', 'http'], AGENT);
    const next = wait(waiters.enlist(['dns'], AGENT));
    const other = wait(waiters.enlist(['http'], AGENT));
    waiters.wake('dns', 1);
    full.standFor([]);
    await settle();
    expect([next.result, other.result]).toEqual([true, undefined]);
  });

  it('are woken for their kinds only', async () => {
    const dns = wait(waiters.enlist(['dns', 'tcp'], AGENT));
    const http = wait(waiters.enlist(['http'], AGENT));
    waiters.wake('ping', 9);
    await settle();
    expect([dns.result, http.result]).toEqual([undefined, undefined]);
    waiters.wake('tcp', 9);
    await settle();
    expect([dns.result, http.result]).toEqual([true, undefined]);
  });

  it('get a wake-up that comes before they wait: while they look', async () => {
    const waiter = waiters.enlist(['dns'], AGENT);
    waiters.wake('dns', 1);
    waiter.served();
    await expect(waiter.woken(LONG_MS, never())).resolves.toBe(true);
  });

  it('use a wake-up once', async () => {
    const waiter = waiters.enlist(['dns'], AGENT);
    waiters.wake('dns', 1);
    await expect(waiter.woken(LONG_MS, never())).resolves.toBe(true);
    waiter.served();
    await expect(waiter.woken(0, never())).resolves.toBe(false);
    waiters.wake('dns', 1);
    await expect(waiter.woken(0, never())).resolves.toBe(true);
  });

  it('leave the wake-ups that they do not need to the next in line', async () => {
    const first = waiters.enlist(['dns'], AGENT);
    const second = wait(waiters.enlist(['dns'], AGENT));
    // The first has one already, so the second task is the second's.
    waiters.wake('dns', 1);
    await settle();
    expect(second.result).toBeUndefined();
    waiters.wake('dns', 1);
    await settle();
    expect(second.result).toBe(true);
    await expect(first.woken(LONG_MS, never())).resolves.toBe(true);
  });

  it('pass a wake-up on when they leave before they looked', async () => {
    const first = waiters.enlist(['dns'], AGENT);
    const second = wait(waiters.enlist(['dns'], AGENT));
    waiters.wake('dns', 1);
    await expect(first.woken(LONG_MS, never())).resolves.toBe(true);
    await settle();
    expect(second.result).toBeUndefined();
    first.leave();
    await settle();
    expect(second.result).toBe(true);
  });

  it('pass a wake-up on that came while they were being served by another', async () => {
    const first = waiters.enlist(['dns'], AGENT);
    const second = wait(waiters.enlist(['dns'], AGENT));
    waiters.wake('dns', 1);
    first.served();
    first.leave();
    await settle();
    expect(second.result).toBe(true);
  });

  it('pass nothing on after they looked', async () => {
    const first = waiters.enlist(['dns'], AGENT);
    const second = wait(waiters.enlist(['dns'], AGENT));
    waiters.wake('dns', 1);
    await first.woken(LONG_MS, never());
    first.served();
    first.leave();
    first.leave();
    await settle();
    expect(second.result).toBeUndefined();
  });

  it('end and pass their wake-up on when the caller has hung up', async () => {
    const gone = new HangUpSignal();
    const first = waiters.enlist(['dns'], AGENT);
    const waitOfFirst = wait(first, gone);
    const second = wait(waiters.enlist(['dns'], AGENT));
    waiters.wake('dns', 1);
    gone.abort();
    await settle();
    expect(waitOfFirst.result).toBe(false);
    first.leave();
    await settle();
    expect(second.result).toBe(true);
  });

  it('end at once for a caller that hung up before or during the wait', async () => {
    await expect(waiters.enlist(['dns'], AGENT).woken(LONG_MS, hungUp())).resolves.toBe(false);
    const gone = new HangUpSignal();
    const waiting = wait(waiters.enlist(['dns'], AGENT), gone);
    gone.abort();
    await settle();
    expect(waiting.result).toBe(false);
  });

  it('end when their time is up, but not with a wake-up in hand', async () => {
    const waiter = waiters.enlist(['dns'], AGENT);
    await expect(waiter.woken(1, never())).resolves.toBe(false);
    await expect(waiter.woken(-1, never())).resolves.toBe(false);
    waiters.wake('dns', 1);
    await expect(waiter.woken(-1, never())).resolves.toBe(true);
  });

  it('wait on after they left the line, and are not woken any more', async () => {
    const drained = waiters.enlist(['dns'], AGENT);
    drained.stepAside();
    const waiting = wait(drained);
    const second = wait(waiters.enlist(['dns'], AGENT));
    waiters.wake('dns', 1);
    await settle();
    expect([waiting.result, second.result]).toEqual([undefined, true]);
  });

  it('look again when something changes with their agent, those that left the line too', async () => {
    const drained = waiters.enlist(['dns'], AGENT);
    drained.stepAside();
    const waiting = [drained, waiters.enlist(['dns'], AGENT), waiters.enlist(['dns'], AGENT + 1)].map((one) =>
      wait(one),
    );
    waiters.wakeAgent(AGENT);
    await settle();
    expect(waiting.map((w) => w.result)).toEqual([true, true, undefined]);
  });

  it('are told what changes with their agent while they look, and not once they left', async () => {
    const looking = waiters.enlist(['dns'], AGENT);
    waiters.wakeAgent(AGENT);
    await expect(looking.woken(LONG_MS, never())).resolves.toBe(true);
    looking.leave();
    waiters.wakeAgent(AGENT);
    await expect(looking.woken(0, never())).resolves.toBe(false);
  });

  it('end when the process stops, those that come later too', async () => {
    const waiting = [wait(waiters.enlist(['dns'], AGENT)), wait(waiters.enlist(['http', 'tcp'], AGENT))];
    lifecycle.beginStop();
    await settle();
    expect(waiting.map((w) => w.result)).toEqual([false, false]);
    const late = waiters.enlist(['dns'], AGENT);
    waiters.wake('dns', 1);
    await expect(late.woken(LONG_MS, never())).resolves.toBe(false);
  });

  it('end one after the other in the second half of a drain, those that come later too, and get work meanwhile', async () => {
    const drainMs = 400;
    const woken = wait(waiters.enlist(['tcp'], AGENT));
    const began = performance.now();
    const early = [1, 2, 3].map(() => waiters.enlist(['dns'], AGENT));
    const waits = early.map((waiter) => waiter.woken(LONG_MS, never()));
    lifecycle.beginDrain(drainMs);
    waiters.wake('tcp', 1);
    await settle();
    expect(woken.result).toBe(true);
    const late = waiters.enlist(['http'], AGENT);
    waits.push(late.woken(LONG_MS, never()));
    expect(late.isReleased).toBe(false);
    expect(await Promise.all(waits)).toEqual([false, false, false, false]);
    // Not earlier: load balancers would send the same callers here again.
    expect(performance.now() - began).toBeGreaterThanOrEqual(drainMs / 2);
    expect([...early, late].map((waiter) => waiter.isReleased)).toEqual([true, true, true, true]);
    expect(lifecycle.stopping).toBe(false);
  });

  it('end when the process stops, those that left the line too', async () => {
    const drained = waiters.enlist(['dns'], AGENT);
    drained.stepAside();
    const waiting = wait(drained);
    lifecycle.beginStop();
    await settle();
    expect(waiting.result).toBe(false);
  });

  // A claim as the service makes one, over tasks that are a number: looking takes a while, and others come in between.
  it('never sleep while there are tasks for them, in whatever order claims come, go and hang up', async () => {
    const kinds = fc.subarray(['dns', 'tcp'], { minLength: 1 });
    const event = fc.oneof(
      fc.record({
        type: fc.constant('claim' as const),
        kinds,
        capacity: fc.integer({ min: 1, max: 3 }),
        lookTurns: fc.nat(3),
        draining: fc.boolean(),
        fails: fc.boolean(),
      }),
      fc.record({
        type: fc.constant('tasks' as const),
        kind: fc.constantFrom('dns', 'tcp'),
        count: fc.integer({ min: 1, max: 3 }),
      }),
      fc.record({ type: fc.constant('hang up' as const), who: fc.nat(20) }),
      fc.record({ type: fc.constant('turn' as const) }),
    );

    const run = async (events: readonly (typeof event extends fc.Arbitrary<infer E> ? E : never)[]) => {
      const process = new Lifecycle();
      const line = new ClaimWaiters(process, inFlight());
      const tasks = new Map([
        ['dns', 0],
        ['tcp', 0],
      ]);
      const asleep = new Set<readonly string[]>();
      const callers: HangUpSignal[] = [];
      const ended: Promise<void>[] = [];

      const claim = async (of: Extract<(typeof events)[number], { type: 'claim' }>, hangUp: HangUpSignal) => {
        const waiter = line.enlist(of.kinds, AGENT);
        try {
          for (;;) {
            let taken = 0;
            for (const kind of of.draining ? [] : of.kinds) {
              const take = Math.min(of.capacity, tasks.get(kind) as number);
              tasks.set(kind, (tasks.get(kind) as number) - take);
              taken += take;
            }
            // The answer comes some time after the look: whatever becomes ready now was not seen.
            for (let i = 0; i < of.lookTurns; i++) await Promise.resolve();
            if (of.fails && taken === 0 && hangUp.aborted) throw new Error('put out of service');
            if (of.draining) waiter.stepAside();
            else waiter.served();
            if (taken > 0) return;
            if (!of.draining) asleep.add(of.kinds);
            const woken = await waiter.woken(LONG_MS, hangUp);
            asleep.delete(of.kinds);
            if (!woken) return;
          }
        } finally {
          waiter.leave();
        }
      };

      for (const step of events) {
        if (step.type === 'claim') {
          const caller = new HangUpSignal();
          callers.push(caller);
          ended.push(claim({ ...step, kinds: [...step.kinds] }, caller).catch(() => undefined));
        } else if (step.type === 'tasks') {
          tasks.set(step.kind, (tasks.get(step.kind) as number) + step.count);
          line.wake(step.kind, step.count);
        } else if (step.type === 'hang up') {
          callers[step.who % Math.max(1, callers.length)]?.abort();
        } else {
          await Promise.resolve();
        }
      }
      await settle();
      const sleeping = [...asleep].flat();
      const left = [...tasks].filter(([kind, count]) => count > 0 && sleeping.includes(kind));
      process.beginStop();
      await Promise.all(ended);
      expect(left).toEqual([]);
    };

    await fc.assert(
      fc.asyncProperty(fc.array(event, { maxLength: 30, size: 'max' }), async (events) => {
        await run(events);
      }),
      { numRuns: 500 },
    );
  });
});
