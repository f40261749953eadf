import { Module } from '@nestjs/common';
import { OperatorsModule } from '../operators/operators.module';
import { TelemetryModule } from '../telemetry/telemetry.module';
import { ConcurrencyController } from './concurrency.controller';
import { ConcurrencyService } from './concurrency.service';
import { RuleHistory } from './rule-history';
import { WindowMetrics } from './window-metrics';
import { Windows } from './windows';

/** Limits on the number of leases at once. */
@Module({
  imports: [OperatorsModule, TelemetryModule],
  controllers: [ConcurrencyController],
  providers: [ConcurrencyService, RuleHistory, Windows, WindowMetrics],
  exports: [ConcurrencyService, RuleHistory, Windows],
})
export class ConcurrencyModule {}
