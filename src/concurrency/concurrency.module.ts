import { Module } from '@nestjs/common';
import { OperatorsModule } from '../operators/operators.module';
import { ConcurrencyController } from './concurrency.controller';
import { ConcurrencyService } from './concurrency.service';

/** How much of what may run at once. */
@Module({
  imports: [OperatorsModule],
  controllers: [ConcurrencyController],
  providers: [ConcurrencyService],
  exports: [ConcurrencyService],
})
export class ConcurrencyModule {}
