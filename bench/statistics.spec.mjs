import { once } from 'node:events';
import { createServer } from 'node:net';
import { Connection } from './connection.mjs';
import { bisect, percentile, ratios, schedule, seededRandom, spread } from './statistics.mjs';

describe('statistics', () => {
  it('takes percentiles by the nearest rank', () => {
    const values = [5, 1, 3, 2, 4];
    expect([0, 20, 21, 50, 95, 100].map((percent) => percentile(values, percent))).toEqual([
      1, 1, 2, 3, 5, 5,
    ]);
    expect(percentile([7], 99)).toBe(7);
    expect(percentile([], 50)).toBeNaN();
    // By number, not by text.
    expect(percentile([10, 9, 100], 50)).toBe(10);
    expect(values).toEqual([5, 1, 3, 2, 4]);
  });

  it('compares rounds one by one', () => {
    expect(spread([3, 1, 2])).toEqual({ min: 1, median: 2, max: 3 });
    expect(ratios([10, 20, 30], [10, 10, 60])).toEqual({ min: 0.5, median: 1, max: 2 });
  });

  it('gives the same random numbers again for the same seed, evenly', () => {
    const [one, again, other] = [seededRandom(1), seededRandom(1), seededRandom(2)];
    const numbers = Array.from({ length: 10_000 }, one);
    expect(Array.from({ length: 10_000 }, again)).toEqual(numbers);
    expect(other()).not.toBe(numbers[0]);
    const tenths = Object.values(Object.groupBy(numbers, (number) => Math.floor(number * 10)));
    expect(tenths).toHaveLength(10);
    for (const tenth of tenths) expect(Math.abs(tenth.length - 1_000)).toBeLessThan(120);
  });

  it('fixes arrivals at the rates asked for, and never more than two beyond an agent’s rate', () => {
    const plan = { agents: 50, rates: [6, 60], durationMs: 120_000, seed: 7 };
    const arrivals = schedule(plan);
    expect(schedule(plan)).toEqual(arrivals);
    expect(schedule({ ...plan, seed: 8 })).not.toEqual(arrivals);
    expect(arrivals.every(({ at }, i) => at >= (arrivals[i - 1]?.at ?? 0) && at < 120_000)).toBe(true);
    for (const [route, perMinute] of plan.rates.entries()) {
      const period = 60_000 / perMinute;
      for (let agent = 0; agent < plan.agents; agent++) {
        const own = arrivals.filter((arrival) => arrival.agent === agent && arrival.route === route);
        expect(Math.abs(own.length - 2 * perMinute)).toBeLessThanOrEqual(1);
        // The bucket of a quota with a burst of 2.
        let tokens = 2;
        let last = 0;
        for (const { at } of own) {
          tokens = Math.min(2, tokens + (at - last) / period) - 1;
          last = at;
          expect(tokens).toBeGreaterThan(-1e-6);
        }
      }
    }
    // Not all at one beat: of 10 ms slots as many are empty as chance says (e^-rate, here 0.58), give or take a little.
    const slots = new Set(arrivals.map(({ at }) => Math.floor(at / 10)));
    expect(Math.abs(1 - slots.size / 12_000 - Math.exp((-50 * 66 * 0.01) / 60))).toBeLessThan(0.02);
  });

  it.each([
    [{ low: 100, high: 5_000, within: 0.02 }, 2_345],
    [{ low: 1, high: 10, within: 0 }, 7],
    [{ low: 1, high: 2, within: 0 }, 1],
  ])('finds by bisection in %o what holds up to %i', async (bounds, limit) => {
    let tries = 0;
    const { passed, failed } = await bisect(bounds, async (number) => {
      tries += 1;
      return number <= limit;
    });
    expect(passed).toBeLessThanOrEqual(limit);
    expect(failed).toBeGreaterThan(limit);
    expect(failed - passed).toBeLessThanOrEqual(Math.max(1, bounds.within * passed));
    expect(tries).toBeLessThanOrEqual(2 + Math.ceil(Math.log2(bounds.high - bounds.low)));
  });

  it('says if all or nothing passes', async () => {
    const bounds = { low: 10, high: 20, within: 0 };
    expect(await bisect(bounds, async () => true)).toEqual({ passed: 20, failed: undefined });
    expect(await bisect(bounds, async () => false)).toEqual({ passed: undefined, failed: 10 });
  });
});

describe('Connection', () => {
  /** Serves one connection after the other, each as told. @returns a connection to it */
  async function connectTo(serve) {
    const server = createServer((socket) => serve(socket.on('error', () => undefined)));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const connection = new Connection(server.address().port);
    const stop = () => {
      connection.close();
      server.close();
    };
    return { connection, stop };
  }

  const answer = (status, body) =>
    `HTTP/1.1 ${status} Said\r\nX-A: b\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

  it('reads pipelined answers in order, however they are cut', async () => {
    const texts = ['{"a":1}', '', 'ü'.repeat(500), 'last'];
    const bytes = Buffer.from(texts.map((text, i) => answer(200 + i, text)).join(''));
    for (const size of [1, 7, 100, bytes.length]) {
      const cut = await connectTo((socket) => {
        let requests = 0;
        socket.on('data', async (chunk) => {
          requests += String(chunk).split('GET ').length - 1;
          if (requests < texts.length) return;
          for (let from = 0; from < bytes.length; from += size) {
            socket.write(bytes.subarray(from, from + size));
            await new Promise((resolve) => setImmediate(resolve));
          }
        });
      });
      const answers = await Promise.all(texts.map(() => cut.connection.request('GET', '/')));
      expect(answers).toEqual(texts.map((text, i) => ({ status: 200 + i, text })));
      expect(cut.connection.opened).toBe(1);
      expect(cut.connection.unanswered).toBe(0);
      cut.stop();
    }
  });

  it('tells of requests that get no answer, and opens again', async () => {
    let connections = 0;
    const { connection, stop } = await connectTo((socket) => {
      connections += 1;
      if (connections === 1) socket.once('data', () => socket.end(answer(200, 'one')));
      else socket.once('data', () => socket.write(answer(201, 'two')));
    });
    const [first, second] = await Promise.allSettled([
      connection.request('GET', '/'),
      connection.request('GET', '/'),
    ]);
    expect(first.value).toEqual({ status: 200, text: 'one' });
    expect(second.reason.message).toContain('without an answer');
    expect(await connection.request('GET', '/')).toEqual({ status: 201, text: 'two' });
    expect(connection.opened).toBe(2);
    stop();
  });
});
