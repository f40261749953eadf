import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { IsObject } from 'class-validator';
import { OptionalInteger } from '../http/fields';
import { shown } from '../http/item-fields';
import { PageEnd } from '../http/pagination';

/** Limits and default of a bundle's lifetime, in seconds. */
const MIN_LIFETIME_S = 60;
const MAX_LIFETIME_S = 5 * 365 * 86_400;
export const DEFAULT_LIFETIME_S = 30 * 86_400;

/** A signed configuration. */
export class ConfigBundle {
  /** The id of this bundle; the `ETag` is the same in quotes. */
  @ApiProperty({ example: 'a3f1c2d4e5b60718' })
  revision!: string;

  /** Always increases: refuse a bundle with a lower number than yours. */
  @ApiProperty({ example: 7 })
  seq!: number;

  @ApiProperty({ format: 'date-time', example: '2026-01-01T00:00:00.000Z' })
  issued_at!: string;

  /** Do not use the bundle from this instant on. */
  @ApiProperty({ format: 'date-time', example: '2026-01-31T00:00:00.000Z' })
  expires_at!: string;

  /** The published configuration, unchanged. */
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

/** The lifetime of the new bundle. */
export class RollbackRequest {
  /** How many seconds agents may use it: a minute to five years. Default: 30 days. */
  @OptionalInteger({
    minimum: MIN_LIFETIME_S,
    maximum: MAX_LIFETIME_S,
    default: DEFAULT_LIFETIME_S,
    example: DEFAULT_LIFETIME_S,
  })
  expires_in?: number | null;
}

/** A configuration to publish. */
export class PublishRequest extends RollbackRequest {
  /** Any JSON object of at most 1 MiB as canonical JSON; integers beyond 2^53 - 1 are refused. */
  @ApiProperty({ type: 'object', additionalProperties: true, example: { resolvers: ['192.0.2.53'] } })
  @IsObject()
  config!: Record<string, unknown>;
}

/** The progress of a bundle's roll-out, by the last reports of agents in service. */
export class Rollout {
  /** Agents that use it. */
  @ApiProperty({ example: 97 })
  applied!: number;

  /** Agents that could not apply it. */
  @ApiProperty({ example: 1 })
  failed!: number;

  /** All agents in service: not disabled, revoked or deleted. */
  @ApiProperty({ example: 100 })
  in_service!: number;
}

/** A bundle without its content. */
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

  /** True if agents get it now: it is the newest and has not expired. */
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

  /** The signature that agents get. */
  @ApiProperty({ example: 'eyJhbGciOiJFZERTQSIsImtpZCI6Ik...fQ..QmFzZTY0dXJsIG9mIDY0IGJ5dGVz' })
  signature!: string;
}

/** One operation of a JSON Patch. */
export class ConfigChange {
  @ApiProperty({ enum: ['add', 'remove', 'replace'], example: 'replace' })
  op!: 'add' | 'remove' | 'replace';

  /** A JSON Pointer (RFC 6901); empty for the whole document. */
  @ApiProperty({ example: '/resolvers/0' })
  path!: string;

  /** The new value, any JSON; absent if `op` is `remove`. */
  @ApiPropertyOptional(shown({ type: 'any', example: '192.0.2.53' }))
  value?: unknown;
}

/** The changes from the previous bundle to this one. */
export class ConfigDiff {
  @ApiProperty({ example: 'a3f1c2d4e5b60718' })
  revision!: string;

  /** The previous bundle; null for the first, which is compared with an empty object. */
  @ApiProperty({ type: String, nullable: true, example: '0f9e8d7c6b5a4938' })
  previous_revision!: string | null;

  /** An RFC 6902 JSON Patch that turns the previous configuration into this one. */
  @ApiProperty({ type: [ConfigChange] })
  changes!: ConfigChange[];
}
