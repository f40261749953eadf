import { Module } from '@nestjs/common';
import { OperatorsService } from './operators.service';

/** Who operates the control plane. */
@Module({ providers: [OperatorsService], exports: [OperatorsService] })
export class OperatorsModule {}
