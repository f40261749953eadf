import { Module } from '@nestjs/common';
import { Bodies } from '../http/bodies';
import { HealthController } from './health.controller';
import { InFlight } from './in-flight';

/** Logs, health and the measures of overload. */
@Module({
  controllers: [HealthController],
  providers: [InFlight, { provide: Bodies, useFactory: () => new Bodies() }],
  exports: [InFlight],
})
export class TelemetryModule {}
