import { Module } from '@nestjs/common';
import { AuditLog } from './audit-log';
import { OperatorsController } from './operators.controller';
import { OperatorsService } from './operators.service';

/** Operators' tokens and the audit log. */
@Module({
  controllers: [OperatorsController],
  providers: [OperatorsService, AuditLog],
  exports: [OperatorsService, AuditLog],
})
export class OperatorsModule {}
