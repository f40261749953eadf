import { Module } from '@nestjs/common';
import { HealthController } from './health.controller';
import { InFlight } from './in-flight';

/** Logs, health and the measures of overload. */
@Module({ controllers: [HealthController], providers: [InFlight], exports: [InFlight] })
export class TelemetryModule {}
