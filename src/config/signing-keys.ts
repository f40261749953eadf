import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { Logger } from '@nestjs/common';
import { CompactSign, calculateJwkThumbprint, exportJWK, type JWK } from 'jose';
import { isInMemory, type Settings, SettingsError, signingKeysFile } from '../settings';

const ALGORITHM = 'EdDSA';

/** A PEM block of any kind; what stands between two is a remark. */
const PEM_BLOCK = /-----BEGIN [^-]*-----[\s\S]*?-----END [^-]*-----/g;

/** A key with the public half that is published. */
interface Key {
  readonly secret: KeyObject;
  readonly kid: string;
  readonly jwk: JWK;
}

/**
 * The Ed25519 keys of configuration, in the order of their file: the first signs, all verify. So a key can be made known
 * before it signs, and one that signed before can verify until what it signed has expired.
 */
export class SigningKeys {
  private constructor(private readonly keys: readonly [Key, ...Key[]]) {}

  /**
   * Reads the keys from their file; where that is missing, makes one and leaves it there, readable for the owner only.
   * Beside a database in memory the key lives in memory too, unless the settings name a file.
   * @throws SettingsError the file can't be read or made, or holds anything but different Ed25519 keys; the message tells
   *   nothing of its content
   */
  static async load(settings: Pick<Settings, 'database' | 'signingKeyFile'>): Promise<SigningKeys> {
    if (settings.signingKeyFile === undefined && isInMemory(settings.database)) return SigningKeys.inMemory();
    const file = signingKeysFile(settings);
    // A path that was set from outside is not repeated; one that was derived would otherwise have to be guessed.
    const name =
      settings.signingKeyFile === undefined
        ? `The file ${file}`
        : 'The file of CONTROL_PLANE_SIGNING_KEY_FILE';
    const keys = await SigningKeys.of(readKeys(file, name) ?? [makeKey(file, name)]);
    if (new Set(keys.jwks.map(({ kid }) => kid)).size < keys.jwks.length)
      throw new SettingsError(`${name} holds the same key twice; leave one of them.`);
    return keys;
  }

  /** A key that ends with the process. */
  static inMemory(): Promise<SigningKeys> {
    return SigningKeys.of([generateKeyPairSync('ed25519').privateKey]);
  }

  /** The RFC 7638 thumbprint of the key that signs. */
  get kid(): string {
    return this.keys[0].kid;
  }

  /** The public halves, for the verifiers; the one that signs is the first. */
  get jwks(): JWK[] {
    return this.keys.map(({ jwk }) => jwk);
  }

  /** Signs a text. @returns the JWS with its payload left out: `header..signature` */
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
  // A block that was cut off is none; it must not go unnoticed.
  const begun = text.split('-----BEGIN ').length - 1;
  if (keys.length === 0 || keys.length < begun || keys.some((key) => key?.asymmetricKeyType !== 'ed25519')) {
    throw new SettingsError(
      `${name} must hold one or more Ed25519 private keys (PEM, PKCS#8, not encrypted) and no other, and does not. ` +
        'Put the right ones in their place, or move it away to have a new one made.',
    );
  }
  return keys as KeyObject[];
}

function readKey(pem: string): KeyObject | undefined {
  try {
    return pem.startsWith('-----BEGIN PRIVATE KEY-----') ? createPrivateKey(pem) : undefined;
  } catch {
    // The reason could quote the content.
    return undefined;
  }
}

function makeKey(file: string, name: string): KeyObject {
  const { privateKey } = generateKeyPairSync('ed25519');
  try {
    // Exclusive: if another process makes one at this instant, this start fails and the next one reads that.
    const handle = openSync(file, 'wx', 0o600);
    try {
      writeFileSync(handle, privateKey.export({ type: 'pkcs8', format: 'pem' }));
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
    // Without this a power cut could take the new name, and with it the key that bundles are signed by.
    const folder = openSync(dirname(file), 'r');
    fsyncSync(folder);
    closeSync(folder);
  } catch (error) {
    throw new SettingsError(
      `${name} does not exist, and a new key to sign configuration with can't be left there (${(error as NodeJS.ErrnoException).code}).`,
    );
  }
  new Logger('Config').log({ file }, 'made a key that signs configuration');
  return privateKey;
}
