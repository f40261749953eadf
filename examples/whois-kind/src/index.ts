import { Module } from '@nestjs/common';
import { OperatorsModule } from 'dns-agent-control-plane/extension';
import { DomainsController } from './domains.controller';
import { DomainsService } from './domains.service';
import { WhoisDomains1764000000000 } from './migrations';
import { WhoisKind } from './whois.kind';

/** The whois kind, its table and its routes. */
@Module({
  imports: [OperatorsModule],
  controllers: [DomainsController],
  providers: [DomainsService, WhoisKind],
})
export default class WhoisModule {}

/** In the order they are applied. */
export const migrations = [WhoisDomains1764000000000];
