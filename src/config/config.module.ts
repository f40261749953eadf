import { Module } from '@nestjs/common';
import { OperatorsModule } from '../operators/operators.module';
import { SETTINGS } from '../settings';
import { ConfigController, ConfigsController, VerifyingKeysController } from './config.controller';
import { ConfigService } from './config.service';
import { SigningKeys } from './signing-keys';

/** Signed configuration for agents. */
@Module({
  imports: [OperatorsModule],
  controllers: [ConfigController, ConfigsController, VerifyingKeysController],
  providers: [{ provide: SigningKeys, inject: [SETTINGS], useFactory: SigningKeys.load }, ConfigService],
  exports: [ConfigService],
})
export class ConfigModule {}
