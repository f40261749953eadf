import { Module } from '@nestjs/common';
import { SETTINGS } from '../settings';
import { ConfigController, VerifyingKeysController } from './config.controller';
import { ConfigService } from './config.service';
import { SigningKey } from './signing-key';

/** Signed configuration for agents. */
@Module({
  controllers: [ConfigController, VerifyingKeysController],
  providers: [{ provide: SigningKey, inject: [SETTINGS], useFactory: SigningKey.load }, ConfigService],
  exports: [ConfigService],
})
export class ConfigModule {}
