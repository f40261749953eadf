import { Module } from '@nestjs/common';
import { HealthController } from './health.controller';

/** Logs, health and the measure of overload. */
@Module({ controllers: [HealthController] })
export class TelemetryModule {}
