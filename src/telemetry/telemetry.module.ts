import { Module } from '@nestjs/common';
import { Bodies } from '../http/bodies';
import { ExpositionController } from './exposition.controller';
import { HealthController } from './health.controller';
import { InFlight } from './in-flight';

/** Serves health checks and metrics, and limits the requests in flight. */
@Module({
  controllers: [ExpositionController, HealthController],
  providers: [InFlight, { provide: Bodies, useFactory: () => new Bodies() }],
  exports: [InFlight],
})
export class TelemetryModule {}
