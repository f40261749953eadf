import { Controller, Get, type Type } from '@nestjs/common';
import { DiscoveryModule } from '@nestjs/core';
import { Test } from '@nestjs/testing';
import { SkipThrottle, Throttle } from '@nestjs/throttler';
import { Agent, Operator, Public } from '../http/access.decorators';
import { Quota } from '../http/quota.decorators';
import { SETTINGS } from '../settings';
import { DeclaredRoutes } from './declared-routes';

@Controller('declared')
class Declared {
  @Get()
  @Public()
  list(): void {}

  @Get('mine')
  @Agent()
  @Quota('mine', '1/minute', { burst: 1 })
  mine(): void {}

  notARoute(): void {}
}

@Public()
@Controller('by-class')
class DeclaredByClass {
  @Get()
  list(): void {}
}

@Controller('forgetful')
class Forgetful {
  @Get()
  @Operator('viewer')
  list(): void {}

  @Get('open')
  open(): void {}
}

class Inheriting extends Forgetful {}
Controller('inheriting')(Inheriting);

@Public()
@Controller('inheriting-by-class')
class InheritingByClass extends DeclaredByClass {}

@Agent()
@Controller('inheriting-otherwise')
class InheritingOtherwise extends DeclaredByClass {}

@Controller('confused')
class Confused {
  @Get()
  @Operator('viewer')
  @Quota('confused', '1/minute', { burst: 1 })
  byNoAgent(): void {}

  @Get('name')
  @Agent()
  @Quota('"quoted"', '1/minute', { burst: 1 })
  badName(): void {}
}

@SkipThrottle()
@Controller('skipping')
class Skipping {
  @Get()
  @Public()
  list(): void {}
}

@Controller('throttling')
class Throttling {
  @Get()
  @Public()
  @Throttle({ default: { limit: 1, ttl: 1_000 } })
  list(): void {}
}

async function start(...controllers: Type[]): Promise<void> {
  const module = await Test.createTestingModule({
    imports: [DiscoveryModule],
    controllers,
    providers: [DeclaredRoutes, { provide: SETTINGS, useValue: { metricsPublic: false, quotas: {} } }],
  }).compile();
  await module.init();
  await module.close();
}

describe('DeclaredRoutes', () => {
  it('starts if all routes declare their callers', async () => {
    await expect(start(Declared, DeclaredByClass)).resolves.toBeUndefined();
  });

  it('names every route without a declaration, including inherited ones', async () => {
    await expect(start(Declared, Forgetful, Inheriting)).rejects.toThrow(
      /Forgetful\.open declares no callers.*; Inheriting\.open declares no callers/,
    );
    await expect(start(Forgetful)).rejects.not.toThrow(/Forgetful\.list/);
  });

  it('names methods that two classes declare differently, because a hook could not choose', async () => {
    await expect(start(DeclaredByClass, InheritingByClass)).resolves.toBeUndefined();
    await expect(start(DeclaredByClass, InheritingOtherwise)).rejects.toThrow(
      /InheritingOtherwise\.list is inherited/,
    );
  });

  it('names invalid quotas', async () => {
    await expect(start(Confused)).rejects.toThrow(
      /Confused\.byNoAgent has a quota by agent.*; Confused\.badName has a quota whose name/,
    );
  });

  it("names routes with the library's decorators, which have no effect", async () => {
    await expect(start(Skipping, Throttling)).rejects.toThrow(
      /Skipping\.list has @Throttle or @SkipThrottle.*; Throttling\.list has @Throttle or @SkipThrottle/,
    );
  });
});
