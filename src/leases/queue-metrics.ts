import { Injectable } from '@nestjs/common';
import { Clock } from '../clock';
import { Database } from '../database/database';
import { Meter } from '../telemetry/meter';
import { QueueDepth } from './queue-depth';

/** Shows how deep the queue is: the database's, the same on each replica. */
@Injectable()
export class QueueMetrics {
  constructor(meter: Meter, database: Database, depth: QueueDepth, clock: Clock) {
    const tasks = meter.gauge({
      name: 'tasks',
      help: 'Tasks in the database.',
      labels: ['kind', 'state'],
    });
    const oldest = meter.gauge({
      name: 'oldest_queued_task_age_seconds',
      help: 'How long ago the oldest of the queued tasks was enqueued.',
      labels: ['kind'],
    });
    meter.onScrape(async () => {
      const depths = await database.read((statements) => depth.depths(statements));
      const now = clock.now();
      tasks.reset();
      oldest.reset();
      for (const { kind, state, count, oldest_created_at: since } of depths) {
        tasks.set({ kind, state }, count);
        if (state === 'queued' && since !== null) oldest.set({ kind }, Math.max(0, now - since) / 1_000);
      }
    });
  }
}
