import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { Logger } from '@nestjs/common';
import { CompactSign, calculateJwkThumbprint, exportJWK, type JWK } from 'jose';
import { isInMemory, type Settings, SettingsError, signingKeysFile } from '../settings';

const ALGORITHM = 'EdDSA';

/** A PEM block of any kind; text between blocks is a comment. */
const PEM_BLOCK = /-----BEGIN [^-]*-----[\s\S]*?-----END [^-]*-----/g;

/** A private key with its public half, which is published. */
interface Key {
  readonly secret: KeyObject;
  readonly kid: string;
  readonly jwk: JWK;
}

/**
 * Holds the Ed25519 keys of configuration, in the order of their file: the first signs, all verify. To rotate keys, publish
 * a new one before it signs, and keep the old one until the bundles that it signed have expired.
 */
export class SigningKeys {
  private constructor(private readonly keys: readonly [Key, ...Key[]]) {}

  /**
   * Reads the keys from their file. If there is no file, creates one with a new key, readable by its owner only. With a
   * database in memory the key is kept in memory too, unless the settings name a file.
   * @throws SettingsError the file can't be read or created, or does not hold distinct Ed25519 keys only; the message
   *   quotes none of its content
   */
  static async load(settings: Pick<Settings, 'database' | 'signingKeyFile'>): Promise<SigningKeys> {
    if (settings.signingKeyFile === undefined && isInMemory(settings.database)) return SigningKeys.inMemory();
    const file = signingKeysFile(settings);
    // Name the path only if it was derived: the operator knows one from a setting.
    const name =
      settings.signingKeyFile === undefined
        ? `The file ${file}`
        : 'The file of CONTROL_PLANE_SIGNING_KEY_FILE';
    const keys = await SigningKeys.of(readKeys(file, name) ?? [makeKey(file, name)]);
    if (new Set(keys.jwks.map(({ kid }) => kid)).size < keys.jwks.length)
      throw new SettingsError(`${name} holds the same key twice; remove one of them.`);
    return keys;
  }

  /** Creates a key that is not stored. */
  static inMemory(): Promise<SigningKeys> {
    return SigningKeys.of([generateKeyPairSync('ed25519').privateKey]);
  }

  /** The RFC 7638 thumbprint of the key that signs. */
  get kid(): string {
    return this.keys[0].kid;
  }

  /** The public keys, for clients that verify; the first is the one that signs. */
  get jwks(): JWK[] {
    return this.keys.map(({ jwk }) => jwk);
  }

  /** Signs a text. @returns the detached JWS: `header..signature` */
  async sign(payload: string): Promise<string> {
    const { secret, kid } = this.keys[0];
    const jws = await new CompactSign(Buffer.from(payload))
      .setProtectedHeader({ alg: ALGORITHM, kid })
      .sign(secret);
    const [header, , signature] = jws.split('.');
    return `${header}..${signature}`;
  }

  private static async of(secrets: readonly KeyObject[]): Promise<SigningKeys> {
    const keys = await Promise.all(
      secrets.map(async (secret) => {
        const jwk = await exportJWK(createPublicKey(secret));
        const kid = await calculateJwkThumbprint(jwk);
        return { secret, kid, jwk: { ...jwk, kid, alg: ALGORITHM, use: 'sig' } };
      }),
    );
    return new SigningKeys(keys as unknown as [Key, ...Key[]]);
  }
}

/** @returns undefined if there is no file */
function readKeys(file: string, name: string): KeyObject[] | undefined {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    throw new SettingsError(
      `${name}, which must hold the key that signs configuration, can't be read (${code}).`,
    );
  }
  const keys = (text.match(PEM_BLOCK) ?? []).map(readKey);
  // A truncated block does not match the pattern, so it is counted by its first line.
  const begun = text.split('-----BEGIN ').length - 1;
  if (keys.length === 0 || keys.length < begun || keys.some((key) => key?.asymmetricKeyType !== 'ed25519')) {
    throw new SettingsError(
      `${name} must hold one or more Ed25519 private keys (PEM, PKCS#8, not encrypted) and nothing else, but does not. ` +
        'Put the right keys in it, or move it away: a new one is then created.',
    );
  }
  return keys as KeyObject[];
}

function readKey(pem: string): KeyObject | undefined {
  try {
    return pem.startsWith('-----BEGIN PRIVATE KEY-----') ? createPrivateKey(pem) : undefined;
  } catch {
    // Dropped: the error could quote the key.
    return undefined;
  }
}

function makeKey(file: string, name: string): KeyObject {
  const { privateKey } = generateKeyPairSync('ed25519');
  try {
    // Exclusive: if another process creates it now, this start fails and the next one reads the file.
    const handle = openSync(file, 'wx', 0o600);
    try {
      writeFileSync(handle, privateKey.export({ type: 'pkcs8', format: 'pem' }));
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
    // Without this, a power failure could lose the file's new name, and with it the key.
    const folder = openSync(dirname(file), 'r');
    fsyncSync(folder);
    closeSync(folder);
  } catch (error) {
    throw new SettingsError(
      `${name} does not exist, and a new signing key can't be stored there (${(error as NodeJS.ErrnoException).code}).`,
    );
  }
  new Logger('Config').log({ file }, 'created a key that signs configuration');
  return privateKey;
}
