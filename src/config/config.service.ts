import { Injectable } from '@nestjs/common';

@Injectable()
export class ConfigService {
  currentRevision(): string | undefined {
    return undefined;
  }
}
