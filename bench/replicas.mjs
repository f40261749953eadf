// Replicas on one database in PostgreSQL, and callers that claim and report through them.
import { enqueue, Stock, work, workersAt } from './load.mjs';
import { newDatabase, startReplicas, startScript } from './processes.mjs';
import { MAX_CLAIM } from './wire.mjs';

/** More tasks than two cores can do in a second, one at a time and in batches. */
const ENOUGH = { one: 12_000, batch: 60_000 };

/** A side of a comparison: it has queued tasks, and runs for a time. */
class Side {
  constructor(enqueueTasks) {
    this.stock = new Stock(enqueueTasks);
  }

  /** Lets `callers` callers claim and report `size` tasks at a time. @returns tasks a second */
  async rate(callers, { size, seconds }) {
    await this.stock.require(seconds * (size === 1 ? ENOUGH.one : ENOUGH.batch) + callers * size);
    const { rate, done } = await this.run(callers, { size, seconds });
    this.stock.took(done);
    return rate;
  }
}

/** Replicas whose callers use HTTP; each caller is an agent with a connection to one of them. */
export class HttpReplicas extends Side {
  static async start(replicas, callers) {
    const { servers, database } = await startReplicas(replicas);
    const side = new HttpReplicas((count) => enqueue(servers[0], count));
    const workers = await workersAt(servers, callers);
    return Object.assign(side, { servers, database, workers });
  }

  run(callers, asked) {
    return work(this.workers.slice(0, callers), asked);
  }

  async stop() {
    for (const worker of this.workers) worker.close();
    for (const server of this.servers) await server.stop();
  }
}

/** The same calls in the replicas' own processes: the units of work without HTTP. */
export class InProcessReplicas extends Side {
  static async start(replicas) {
    const database = await newDatabase('postgres');
    const scripts = [];
    for (let i = 0; i < replicas; i++) {
      const script = startScript('./contender.mjs', { args: ['control-plane', database] });
      // One after the other: the first migrates.
      await script.ask({ op: 'enqueue', count: 0 });
      scripts.push(script);
    }
    const side = new InProcessReplicas((count) => scripts[0].ask({ op: 'enqueue', count }));
    return Object.assign(side, { scripts });
  }

  async run(callers, asked) {
    const shares = this.scripts.map((_, i) => Math.floor((callers + i) / this.scripts.length));
    const answers = await Promise.all(
      this.scripts.flatMap((script, i) =>
        shares[i] > 0 ? script.ask({ op: 'work', workers: shares[i], ...asked }) : [],
      ),
    );
    return {
      done: answers.reduce((sum, { done }) => sum + done, 0),
      rate: answers.reduce((sum, { done, seconds }) => sum + done / seconds, 0),
    };
  }

  async stop() {
    for (const script of this.scripts) await script.stop();
  }
}

/** Callers and batches of the two loads that subjects compare. */
export const ONE_AT_A_TIME = { figure: 'one at a time, 64 callers', size: 1, callers: 64 };
export const IN_BATCHES = { figure: `${MAX_CLAIM} at a time, 6 callers`, size: MAX_CLAIM, callers: 6 };
