import { ApiProperty } from '@nestjs/swagger';

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
