// The queues that are compared in process, each with the same three methods: `enqueue` tasks, `work` until `count`
// are done, `stop`.
import { EventEmitter } from 'node:events';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { Logger, makeWorkerUtils, run } from 'graphile-worker';
import { PgBoss } from 'pg-boss';
import { OPERATOR, settingsOf, UNTHROTTLED } from './processes.mjs';
import { claimBody, dnsTasks, MAX_CLAIM, MAX_ENQUEUE, reportBody } from './wire.mjs';

const require = createRequire(import.meta.url);

/** Generates the specs of tasks, in batches of one call. */
function* batches(count) {
  for (let done = 0; done < count; done += MAX_ENQUEUE)
    yield dnsTasks(Math.min(MAX_ENQUEUE, count - done), { from: done });
}

/**
 * The built application without HTTP: makes the calls of its routes in its process. So it measures the cost of its work
 * on the database, as with a queue that is a library.
 */
class ControlPlane {
  #agents = [];

  async start(database) {
    const { createApp } = require('../dist/app.js');
    const { readSettings } = require('../dist/settings.js');
    const { ClaimsService } = require('../dist/leases/claims.service.js');
    const { LeasesService } = require('../dist/leases/leases.service.js');
    this.plane = await createApp(readSettings({ ...settingsOf(database, 0), ...UNTHROTTLED }));
    this.claims = this.plane.app.get(ClaimsService);
    this.leases = this.plane.app.get(LeasesService);
  }

  async #inject(url, payload, headers) {
    const answer = await this.plane.app.inject({ method: 'POST', url, payload, headers });
    if (answer.statusCode > 299) throw new Error(`POST ${url}: ${answer.statusCode} ${answer.body}`);
    return answer.json();
  }

  async enqueue(count) {
    for (const tasks of batches(count)) await this.#inject('/v1/tasks', { tasks }, OPERATOR);
  }

  async #agentsFor(workers) {
    const { hashToken } = require('../dist/http/tokens.js');
    while (this.#agents.length < workers) {
      const answer = await this.#inject('/register', {
        hostname: `bench-${process.pid}-${this.#agents.length}`,
      });
      this.#agents.push({ id: answer.agent_id, tokenHash: hashToken(answer.auth_token) });
    }
    return this.#agents.slice(0, workers);
  }

  async work({ workers, size, count = Infinity, seconds = Infinity }) {
    const agents = await this.#agentsFor(workers);
    const { HangUpSignal } = require('../dist/http/hang-up.js');
    const signal = new HangUpSignal();
    const startedAt = performance.now();
    let done = 0;
    await Promise.all(
      agents.map(async (agent) => {
        while (done < count && performance.now() - startedAt < seconds * 1_000) {
          const { leases } = await this.claims.claim(agent, claimBody(agent, size), undefined, signal);
          const ids = leases.map(({ lease_id: id }) => id);
          const { acknowledged } = await this.leases.report(agent, reportBody(agent, ids));
          if (acknowledged !== ids.length) throw new Error(`${acknowledged} of ${ids.length} acknowledged`);
          done += ids.length;
        }
      }),
    );
    return { done, seconds: (performance.now() - startedAt) / 1_000 };
  }

  stop() {
    return this.plane.stop();
  }
}

/**
 * graphile-worker, configured for speed by its documentation: jobs fetched ahead and completed in batches. Its tasks
 * do nothing.
 */
class GraphileWorker {
  fetchedAhead = 500;

  async start(database) {
    this.options = {
      logger: new Logger(() => () => undefined),
      preset: {
        worker: {
          connectionString: database,
          concurrentJobs: 24,
          maxPoolSize: 25,
          localQueue: { size: this.fetchedAhead },
          completeJobBatchDelay: 0,
          failJobBatchDelay: 0,
        },
      },
    };
    this.utils = await makeWorkerUtils(this.options);
    await this.utils.migrate();
  }

  async enqueue(count) {
    for (const tasks of batches(count))
      await this.utils.addJobs(tasks.map(({ spec }) => ({ identifier: 'check', payload: spec })));
  }

  /**
   * @param count must be the number of queued tasks; the time is measured from the first fetch until the database has
   * none left
   */
  async work({ count }) {
    const events = new EventEmitter();
    const over = Promise.withResolvers();
    let startedAt;
    let done = 0;
    events.once('localQueue:init', () => {
      startedAt = performance.now();
    });
    events.on('job:complete', ({ error }) => {
      if (error) over.reject(error);
      done += 1;
      if (done === count) over.resolve();
    });
    const taskList = { check: () => undefined };
    const runner = await run({
      ...this.options,
      events,
      taskList,
      noHandleSignals: true,
      parsedCronItems: [],
    });
    await over.promise;
    // The event of a completion comes before the batch that writes it.
    await this.utils.withPgClient(async (client) => {
      const sql = 'SELECT FROM graphile_worker._private_jobs LIMIT 1';
      while ((await client.query(sql)).rowCount > 0) await sleep(1);
    });
    const seconds = (performance.now() - startedAt) / 1_000;
    await runner.stop();
    return { done, seconds };
  }

  stop() {
    return this.utils.release();
  }
}

/** The same with more jobs fetched ahead than advised: if a worker ends, all of them stay locked. */
class GreedyGraphileWorker extends GraphileWorker {
  fetchedAhead = 2_000;
}

/** pg-boss, its jobs fetched and completed in batches as large as our claims. */
class Boss {
  async start(database) {
    this.boss = new PgBoss({ connectionString: database, supervise: false, schedule: false });
    this.boss.on('error', (error) => console.error(error));
    await this.boss.start();
    await this.boss.createQueue('check');
  }

  async enqueue(count) {
    for (const tasks of batches(count))
      await this.boss.insert(
        'check',
        tasks.map(({ spec }) => ({ data: spec })),
      );
  }

  async work({ workers, count }) {
    const startedAt = performance.now();
    let done = 0;
    await Promise.all(
      Array.from({ length: workers }, async () => {
        while (done < count) {
          const jobs = await this.boss.fetch('check', { batchSize: MAX_CLAIM });
          if (jobs.length === 0) return;
          await this.boss.complete(
            'check',
            jobs.map(({ id }) => id),
          );
          done += jobs.length;
        }
      }),
    );
    return { done, seconds: (performance.now() - startedAt) / 1_000 };
  }

  stop() {
    return this.boss.stop({ graceful: false });
  }
}

/** By name. */
export const CONTENDERS = {
  'control-plane': ControlPlane,
  'graphile-worker': GraphileWorker,
  'graphile-worker-2000': GreedyGraphileWorker,
  'pg-boss': Boss,
};
