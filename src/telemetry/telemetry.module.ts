import { Module } from '@nestjs/common';
import { Bodies } from '../http/bodies';
import { ExpositionController } from './exposition.controller';
import { HealthController } from './health.controller';
import { InFlight } from './in-flight';

/** Logs, health and the measures of overload. */
@Module({
  controllers: [ExpositionController, HealthController],
  providers: [InFlight, { provide: Bodies, useFactory: () => new Bodies() }],
  exports: [InFlight],
})
export class TelemetryModule {}
