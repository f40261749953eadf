import { Module } from '@nestjs/common';
import { AuditLog } from './audit-log';
import { OperatorsController } from './operators.controller';
import { OperatorsService } from './operators.service';

/** Who operates the control plane, and what they did. */
@Module({
  controllers: [OperatorsController],
  providers: [OperatorsService, AuditLog],
  exports: [OperatorsService, AuditLog],
})
export class OperatorsModule {}
