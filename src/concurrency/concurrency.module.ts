import { Module } from '@nestjs/common';
import { OperatorsModule } from '../operators/operators.module';
import { ConcurrencyController } from './concurrency.controller';
import { ConcurrencyService } from './concurrency.service';
import { WindowMetrics } from './window-metrics';

/** How much of what may run at once. */
@Module({
  imports: [OperatorsModule],
  controllers: [ConcurrencyController],
  providers: [ConcurrencyService, WindowMetrics],
  exports: [ConcurrencyService],
})
export class ConcurrencyModule {}
