import { Module } from '@nestjs/common';
import { OperatorsModule } from '../operators/operators.module';
import { SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import { ConfigController, ConfigsController, VerifyingKeysController } from './config.controller';
import { ConfigService } from './config.service';
import { SigningKeys } from './signing-keys';

/** Publishes signed configuration and serves it to agents. */
@Module({
  imports: [OperatorsModule],
  controllers: [ConfigController, ConfigsController, VerifyingKeysController],
  providers: [
    {
      provide: SigningKeys,
      inject: [SETTINGS, Lifecycle],
      useFactory: (settings: Settings, { serves }: Lifecycle) =>
        serves ? SigningKeys.load(settings) : SigningKeys.inMemory(),
    },
    ConfigService,
  ],
  exports: [ConfigService],
})
export class ConfigModule {}
