import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsObject } from 'class-validator';
import { OptionalInteger } from '../http/fields';
import { shown } from '../http/item-fields';
import { PageEnd } from '../http/pagination';

/** How long a bundle may be good for, in seconds, and is where the publisher does not say. */
const MIN_LIFETIME_S = 60;
const MAX_LIFETIME_S = 5 * 365 * 86_400;
export const DEFAULT_LIFETIME_S = 30 * 86_400;

/** A signed configuration. */
export class ConfigBundle {
  /** Names this bundle; the `ETag` is the same in quotes. */
  @ApiProperty({ example: 'a3f1c2d4e5b60718' })
  revision!: string;

  /** Only grows: refuse a bundle whose number is below that of the one you have. */
  @ApiProperty({ example: 7 })
  seq!: number;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  issued_at!: string;

  /** Do not use the bundle from this instant on. */
  @ApiProperty({ format: 'date-time', example: '2026-01-31T00:00:00.000Z' })
  expires_at!: string;

  /** What operators published, as it is. */
  @ApiProperty({ type: 'object', additionalProperties: true, example: { resolvers: ['192.0.2.53'] } })
  config!: Record<string, unknown>;

  /**
   * Detached JWS, `header..signature`, EdDSA (Ed25519), over the RFC 8785 canonical JSON of
   * `{revision, seq, issued_at, expires_at, config}`. The header's `kid` names one of the keys of `/.well-known/jwks.json`.
   */
  @ApiProperty({ example: 'eyJhbGciOiJFZERTQSIsImtpZCI6Ik...fQ..QmFzZTY0dXJsIG9mIDY0IGJ5dGVz' })
  signature!: string;
}

/** A public key. */
export class VerifyingKey {
  @ApiProperty({ example: 'OKP' })
  kty!: string;

  @ApiProperty({ example: 'Ed25519' })
  crv!: string;

  /** The key, base64url. */
  @ApiProperty({ example: '11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo' })
  x!: string;

  /** The RFC 7638 thumbprint of the key. */
  @ApiProperty({ example: 'kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k' })
  kid!: string;

  @ApiProperty({ example: 'EdDSA' })
  alg!: string;

  @ApiProperty({ example: 'sig' })
  use!: string;
}

/** A JWK set. */
export class VerifyingKeys {
  @ApiProperty({ type: [VerifyingKey] })
  keys!: VerifyingKey[];
}

/** How long a bundle that is published is good for. */
export class RollbackRequest {
  /** For how many seconds agents may use it: a minute to five years, 30 days where nothing is said. */
  @OptionalInteger({
    minimum: MIN_LIFETIME_S,
    maximum: MAX_LIFETIME_S,
    default: DEFAULT_LIFETIME_S,
    example: DEFAULT_LIFETIME_S,
  })
  expires_in?: number | null;
}

/** What to publish. */
export class PublishRequest extends RollbackRequest {
  /** Any JSON object of at most 1 MiB as canonical JSON; integers beyond 2^53 - 1 are refused. */
  @ApiProperty({ type: 'object', additionalProperties: true, example: { resolvers: ['192.0.2.53'] } })
  @IsObject()
  config!: Record<string, unknown>;
}

/** How far the roll-out of a bundle is, as agents in service said last. */
export class Rollout {
  /** Agents that use it. */
  @ApiProperty({ example: 97 })
  applied!: number;

  /** Agents that could not. */
  @ApiProperty({ example: 1 })
  failed!: number;

  /** All agents in service: not disabled, revoked or deleted. */
  @ApiProperty({ example: 100 })
  in_service!: number;
}

/** A bundle as operators see it in lists. */
export class ConfigView {
  @ApiProperty({ example: 'a3f1c2d4e5b60718' })
  revision!: string;

  @ApiProperty({ example: 7 })
  seq!: number;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  issued_at!: string;

  @ApiProperty({ format: 'date-time', example: '2026-01-31T00:00:00.000Z' })
  expires_at!: string;

  /** The key that signed it. */
  @ApiProperty({ example: 'kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k' })
  kid!: string;

  /** Whether it is what agents get now: the newest, and not expired. */
  @ApiProperty({ example: true })
  in_force!: boolean;

  @ApiProperty({ type: Rollout })
  rollout!: Rollout;
}

/** A page of bundles. */
export class ConfigPage extends PageEnd {
  @ApiProperty({ type: [ConfigView] })
  items!: ConfigView[];
}

/** A bundle with its content. */
export class ConfigDetail extends ConfigView {
  @ApiProperty({ type: 'object', additionalProperties: true, example: { resolvers: ['192.0.2.53'] } })
  config!: Record<string, unknown>;

  /** As agents get it. */
  @ApiProperty({ example: 'eyJhbGciOiJFZERTQSIsImtpZCI6Ik...fQ..QmFzZTY0dXJsIG9mIDY0IGJ5dGVz' })
  signature!: string;
}

/** One operation of a JSON Patch. */
export class ConfigChange {
  @ApiProperty({ enum: ['add', 'remove', 'replace'], example: 'replace' })
  op!: 'add' | 'remove' | 'replace';

  /** A JSON Pointer (RFC 6901); empty for the whole. */
  @ApiProperty({ example: '/resolvers/0' })
  path!: string;

  /** What is there now, any JSON; left out of a removal. */
  @ApiPropertyOptional(shown({ type: 'any', example: '192.0.2.53' }))
  value?: unknown;
}

/** What a bundle changed in the one before it. */
export class ConfigDiff {
  @ApiProperty({ example: 'a3f1c2d4e5b60718' })
  revision!: string;

  /** The one before; null of the first, which is compared with an empty object. */
  @ApiProperty({ type: String, nullable: true, example: '0f9e8d7c6b5a4938' })
  previous_revision!: string | null;

  /** An RFC 6902 JSON Patch that makes this configuration out of the one before. */
  @ApiProperty({ type: [ConfigChange] })
  changes!: ConfigChange[];
}
